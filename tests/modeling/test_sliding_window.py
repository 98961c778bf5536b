"""A Receiver with sliding-window layers: prompts must fit into the window, answers may go beyond it."""

import pytest
import torch
from pairs import join, random_inputs, tiny_model

from h2c_hf.modeling.inputs_h2c import CACHE


WINDOW = 16
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]


def gemma_pair():
    receiver = tiny_model("gemma3", 2, sliding_window=WINDOW, layer_types=LAYERS, head_dim=8)
    return join(tiny_model("llama", 1), receiver)


def shut(model):
    with torch.no_grad():
        model.bridge.gate.fill_(float("-inf"))
    return model


def prompts(length: int, padding: int = 0) -> dict[str, torch.Tensor]:
    """Two rows; the first has `padding` pad tokens on the left."""
    sharer = {
        name: value[:2] for name, value in random_inputs(3, batch=2).items() if name.startswith("sharer_")
    }
    mask = torch.ones(2, length, dtype=torch.long)
    mask[0, :padding] = 0
    ids = torch.randint(1, 61, (2, length), generator=torch.Generator().manual_seed(length)) * mask
    return {"input_ids": ids, "attention_mask": mask, **sharer}


GENERATION = {
    "max_new_tokens": 2 * WINDOW,
    "do_sample": False,
    "return_dict_in_generate": True,
    "output_logits": True,
}


@pytest.mark.parametrize("length, padding", [(5, 0), (9, 4), (WINDOW, 0), (WINDOW, 7)])
def test_a_shut_bridge_generates_beyond_the_window_as_the_receiver(length, padding):
    model, inputs = shut(gemma_pair()), prompts(length, padding)
    bridged = model.generate(**inputs, **GENERATION)
    model.disable_bridge()
    stock = model.receiver.generate(
        inputs["input_ids"], attention_mask=inputs["attention_mask"], **GENERATION
    )
    assert torch.equal(bridged.sequences, stock.sequences)
    # The stock call reads the whole prompt at once and ours the kickstart after the rest: the same sums in
    # another order.
    torch.testing.assert_close(torch.stack(bridged.logits), torch.stack(stock.logits), atol=1e-4, rtol=1e-5)


def test_a_shut_bridge_equals_the_receiver_to_the_bit():
    """The stock Receiver goes on from its own cache of all tokens but the kickstart, past its window."""
    model, inputs = shut(gemma_pair()), prompts(WINDOW)
    bridged = model.generate(**inputs, **GENERATION)
    with torch.no_grad():
        cache = model.receiver(inputs["input_ids"][:, :-1], attention_mask=inputs["attention_mask"][:, :-1])[
            CACHE
        ]
        ids, mask, logits = inputs["input_ids"], inputs["attention_mask"], []
        for _ in range(2 * WINDOW):
            logits.append(
                model.receiver(ids[:, -1:], attention_mask=mask, **{CACHE: cache}, use_cache=True).logits[
                    :, -1
                ]
            )
            ids = torch.cat([ids, logits[-1].argmax(-1, keepdim=True)], 1)
            mask = torch.cat([mask, mask[:, :1]], 1)
    assert torch.equal(torch.stack(bridged.logits), torch.stack(logits))


def test_an_open_bridge_answers_beyond_the_window_in_a_batch_as_alone():
    model, inputs = gemma_pair(), prompts(WINDOW, padding=7)
    both = model.generate(**inputs, **GENERATION).sequences
    for row, start in ((0, 7), (1, 0)):
        single = {"input_ids": inputs["input_ids"][row : row + 1, start:]}
        kept = inputs["sharer_attention_mask"][row].bool()
        single["sharer_input_ids"] = inputs["sharer_input_ids"][row : row + 1, kept]
        alone = model.generate(**single, **GENERATION).sequences
        assert both[row, WINDOW:].tolist() == alone[0, -2 * WINDOW :].tolist()


def test_a_prompt_beyond_the_window_is_refused_in_one_sentence():
    model = gemma_pair()
    with pytest.raises(
        ValueError, match="17 tokens long, padding included; the Receiver has a sliding window of 16"
    ) as error:
        model.generate(**prompts(WINDOW + 1), max_new_tokens=1)
    assert len(str(error.value).splitlines()) == 1
