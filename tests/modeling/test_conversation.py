"""Turn by turn, against the whole conversation at once with each position seeing what its turn saw."""

import random

import pytest
import torch
from pairs import VOCABULARY, join, random_inputs, random_pair, randomize, tiny_model
from reference import plain_logits
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

from h2c_hf.modeling import H2CBridgeModel, H2CConversation, H2CForCausalLM


STEPS = 3


def random_turns(seed: int, count: int | None = None, longest: int = 9) -> list[dict[str, torch.Tensor]]:
    """The prompts of a conversation's turns: each begins with the one before, for both models."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    lengths, turns = {"input_ids": 1, "sharer_input_ids": 0}, []
    for _ in range(count or rng.randint(2, 5)):
        lengths = {name: length + rng.randint(1, longest) for name, length in lengths.items()}
        turns.append(dict(lengths))
    ids = {
        name: torch.randint(1, VOCABULARY, (1, length), generator=generator)
        for name, length in lengths.items()
    }
    return [{name: ids[name][:, :length] for name, length in turn.items()} for turn in turns]


def hidden(turns: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """(N - 1, Sharer's length) of the last prompt, True where a position does not see a token of the
    Sharer's: a later turn's."""
    mask = torch.zeros(
        turns[-1]["input_ids"].shape[1] - 1, turns[-1]["sharer_input_ids"].shape[1], dtype=torch.bool
    )
    for turn in turns:
        mask[: turn["input_ids"].shape[1] - 1, turn["sharer_input_ids"].shape[1] :] = True
    return mask


def answer(conversation: H2CConversation, turn: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy tokens (STEPS,) and the logits of each, (STEPS, vocabulary)."""
    output = conversation.generate(
        **turn,
        max_new_tokens=STEPS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    assert torch.equal(output.sequences[:, :-STEPS], turn["input_ids"])
    return output.sequences[0, -STEPS:], torch.cat(output.logits)


def expect(conversation: H2CConversation, turns: list[dict[str, torch.Tensor]]) -> None:
    """The last turn is answered as the whole conversation is, bridged at once under the same masks."""
    tokens, logits = answer(conversation, turns[-1])
    expected = plain_logits(conversation.model, *turns[-1].values(), tokens[:-1], hidden(turns))
    assert torch.allclose(logits, expected, atol=1e-4)
    assert torch.equal(tokens, expected.argmax(-1))


@pytest.mark.parametrize("seed", range(12))
def test_every_turn_is_answered_as_the_whole_bridged_at_once(seed):
    model, turns = random_pair(seed), random_turns(seed)
    conversation = model.conversation()
    assert isinstance(conversation, H2CConversation)
    for number in range(len(turns)):
        expect(conversation, turns[: number + 1])


def test_what_a_turn_saw_makes_a_difference():
    model, turns = random_pair(0), random_turns(0)
    conversation = model.conversation()
    for turn in turns:
        tokens, logits = answer(conversation, turn)
    assert not torch.allclose(logits, plain_logits(model, *turn.values(), tokens[:-1]), atol=1e-2)


@pytest.fixture
def counted():
    """A function of a model that counts the tokens each part reads or rewrites, call by call."""
    hooks = []

    def count(model: H2CForCausalLM) -> dict[str, list[int]]:
        counts = {"sharer": [], "receiver": [], "bridge": []}
        layers = [model.sharer.base_model.layers[0], model.receiver.base_model.layers[0], model.bridge.q_proj]
        for layer, seen in zip(layers, counts.values(), strict=True):
            hooks.append(
                layer.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].shape[1]))
            )
        return counts

    yield count
    for hook in hooks:
        hook.remove()


def test_only_what_is_new_is_read_and_bridged(counted):
    model, turns = random_pair(1), random_turns(1, 5)
    conversation = model.conversation()
    counts = counted(model)
    before = {"input_ids": 1, "sharer_input_ids": 0}
    for turn in turns:
        answer(conversation, turn)
        new = {name: turn[name].shape[1] - length for name, length in before.items()}
        assert counts["sharer"] == [new["sharer_input_ids"]]
        assert counts["bridge"] == [new["input_ids"]]
        assert counts["receiver"] == [new["input_ids"]] + [1] * STEPS
        before = {name: ids.shape[1] for name, ids in turn.items()}
        for seen in counts.values():
            seen.clear()


def test_the_chat_templates_of_a_real_pair_keep_what_was_read(atlas, counted):
    model, processor = atlas
    conversation, counts, messages = model.conversation(), counted(model), []
    lengths, expected = [], []
    for question in (
        "In which country is the city of Bensekrane?",
        "And Alicante?",
        "What is the currency of Norway?",
    ):
        messages.append({"role": "user", "content": question})
        inputs = processor.apply_chat_template(messages)
        output = conversation.generate(**inputs, max_new_tokens=8, do_sample=False)
        text = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        messages.append({"role": "assistant", "content": text})
        lengths.append(inputs["sharer_input_ids"].shape[1])
        expected.append(lengths[-1] - sum(expected))
    assert messages[1]["content"].strip() == "Algeria"
    assert counts["sharer"] == expected and lengths[0] < lengths[1] < lengths[2]


# A conversation that does not simply go on


@pytest.mark.parametrize("seed", range(6))
def test_an_edited_turn_is_answered_as_in_a_fresh_conversation(seed):
    """Of a turn edited in its middle nothing stays: what stands before the edit had seen what came after."""
    model, turns = random_pair(seed), random_turns(seed, 3)
    conversation = model.conversation()
    for turn in turns:
        answer(conversation, turn)
    for edited in ("input_ids", "sharer_input_ids"):
        changed = {name: ids.clone() for name, ids in turns[2].items()}
        # In the second turn, which was bridged in the second and is now in this one.
        place = turns[1][edited].shape[1] - 2
        changed[edited][:, place] = changed[edited][:, place] % (VOCABULARY - 1) + 1
        kept = [turn for turn in turns[:2] if turn[edited].shape[1] - (edited == "input_ids") <= place]
        expect(conversation, [*kept, changed])
        fresh = model.conversation()
        for turn in kept:
            answer(fresh, turn)
        assert torch.allclose(answer(conversation, changed)[1], answer(fresh, changed)[1], atol=1e-5)
        longer = {name: torch.cat([ids, ids[:, :2]], 1) for name, ids in changed.items()}
        expect(conversation, [*kept, changed, longer])


def test_a_turn_can_be_answered_again_and_taken_back():
    model, turns = random_pair(2), random_turns(2, 3)
    conversation = model.conversation()
    for number in (0, 1, 1, 2, 2, 0, 1):
        expect(conversation, turns[: number + 1])


def test_the_same_prompt_after_a_longer_one_of_the_sharer():
    model, turns = random_pair(3), random_turns(3, 2)
    conversation = model.conversation()
    answer(conversation, turns[0])
    expect(conversation, [{**turns[0], "sharer_input_ids": turns[1]["sharer_input_ids"]}])


def test_a_turn_without_the_bridge_is_the_receivers_own():
    model, turns = random_pair(0), random_turns(0, 3)
    conversation = model.conversation()
    answer(conversation, turns[0])
    with model.disable_bridge():
        tokens, _ = answer(conversation, turns[1])
    own = model.receiver.generate(turns[1]["input_ids"], max_new_tokens=STEPS, do_sample=False)
    assert torch.equal(tokens, own[0, turns[1]["input_ids"].shape[1] :])
    expect(conversation, [turns[0], turns[2]])


def test_another_bridge_starts_anew():
    model, turns = random_pair(4), random_turns(4, 2)
    conversation = model.conversation()
    answer(conversation, turns[0])
    model.bridge = randomize(H2CBridgeModel(model.config), seed=99).eval()
    expect(conversation, turns[1:])


def qwen3_next():
    """Two layers of linear attention, then one that keeps keys and values."""
    torch.manual_seed(0)
    config = Qwen3NextConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, linear_key_head_dim=8,
        linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4, num_experts=0,
        layer_types=["linear_attention", "linear_attention", "full_attention"], mlp_only_layers=[0, 1, 2],
        initializer_range=0.3, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return Qwen3NextForCausalLM(config).eval()


@pytest.mark.parametrize(
    "sharer", [lambda: tiny_model("mistral", sliding_window=5), qwen3_next], ids=["sliding", "linear"]
)
def test_a_sharer_that_cannot_go_back_reads_from_the_start(sharer):
    model, turns = join(sharer(), tiny_model("qwen2", 1)), random_turns(5, 3)
    conversation = model.conversation()
    for number in range(3):
        expect(conversation, turns[: number + 1])
    edited = {name: ids.clone() for name, ids in turns[2].items()}
    edited["sharer_input_ids"][:, -2] = edited["sharer_input_ids"][:, -2] % (VOCABULARY - 1) + 1
    expect(conversation, [*turns[:2], edited])
    expect(conversation, turns[:1])


def test_a_receiver_with_a_window_that_the_conversation_fits_into():
    model = join(tiny_model("llama"), tiny_model("gemma3", 1, sliding_window=40, head_dim=8))
    turns = random_turns(6, 4)
    conversation = model.conversation()
    for number in (0, 1, 2, 3, 1, 2):
        expect(conversation, turns[: number + 1])
    with pytest.raises(
        ValueError,
        match="input_ids are 41 tokens long, padding included; the Receiver has a sliding window of 40",
    ):
        conversation.generate(torch.ones(1, 41, dtype=torch.long), turns[0]["sharer_input_ids"])


# Options of generate, and what goes wrong


def test_beams_and_several_sequences_leave_the_next_turn_as_it_is():
    model, turns = random_pair(7), random_turns(7, 2)
    conversation = model.conversation()
    output = conversation.generate(
        **turns[0], max_new_tokens=2, num_beams=3, num_return_sequences=3, do_sample=False
    )
    assert len(output) == 3
    expect(conversation, turns)


class Interrupting:
    """A streamer during whose second token the user presses Ctrl-C."""

    def __init__(self):
        self.calls = 0

    def put(self, value):
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt

    def end(self):
        pass


@pytest.mark.parametrize(
    ("wrong", "error"),
    [({"streamer": Interrupting()}, KeyboardInterrupt), ({"no_such_argument": 1}, ValueError)],
    ids=["interrupted", "refused"],
)
def test_a_turn_that_fails_leaves_no_trace(wrong, error):
    model, turns = random_pair(8), random_turns(8, 3)
    conversation = model.conversation()
    answer(conversation, turns[0])
    with pytest.raises(error):
        conversation.generate(**turns[1], max_new_tokens=5, do_sample=False, **wrong)
    expect(conversation, [turns[0], turns[2]])
    # What was kept is of no use to it.
    other = {name: ids % (VOCABULARY - 1) + 1 for name, ids in turns[2].items()}
    with pytest.raises(ValueError):
        conversation.generate(**other, no_such_argument=1)
    expect(conversation, [turns[0], turns[2]])


def test_what_is_refused():
    model = random_pair(9)
    conversation, turn = model.conversation(), random_turns(9, 1)[0]
    two = random_inputs(0, batch=2)
    with pytest.raises(
        ValueError, match="Got a batch of 2 in input_ids; expected one conversation, without padding."
    ):
        conversation.generate(two["input_ids"], two["sharer_input_ids"])
    padded = torch.cat([torch.zeros_like(turn["sharer_input_ids"][:, :1]), turn["sharer_input_ids"]], 1)
    with pytest.raises(
        ValueError, match="Got padding in sharer_input_ids; expected one conversation, without padding."
    ):
        conversation.generate(turn["input_ids"], padded, sharer_attention_mask=padded.sign())
    with pytest.raises(
        ValueError, match="A prompt in input_ids is 300 tokens long; the context window of its model is 256."
    ):
        conversation.generate(torch.ones(1, 300, dtype=torch.long), turn["sharer_input_ids"])
    with pytest.raises(ValueError, match="A prompt in input_ids is empty or too short: got 1 tokens"):
        conversation.generate(turn["input_ids"][:, :1], turn["sharer_input_ids"])
    with pytest.raises(ValueError, match="made without the Sharer's weights"):
        H2CForCausalLM.from_pair(model.sharer.config, model.receiver, model.bridge).conversation()
    with pytest.raises(
        ValueError, match="A layer of the Receiver keeps a .*; expected keys and values of every token."
    ):
        join(tiny_model("llama"), qwen3_next()).conversation()
