import random

import pytest
import torch

from h2c_hf.atlas.build import RECIPES, ROLES, TEACHERS, TOKENIZERS, build, new_model
from h2c_hf.atlas.facts import load_facts
from h2c_hf.atlas.pretraining import IGNORE, Packer, PretrainingArguments, answer_loss, pretrain, schedule


FACTS = load_facts()


@pytest.fixture(scope="module", params=ROLES)
def taught(request):
    role = request.param
    tokenizer, teacher = TOKENIZERS[role](FACTS), TEACHERS[role](FACTS)
    return role, tokenizer, teacher, Packer(tokenizer, teacher)


def test_every_value_is_one_token(taught):
    _, tokenizer, _, _ = taught
    for value in {fact.value for fact in FACTS}:
        assert len(tokenizer.encode(f" {value}", add_special_tokens=False)) == 1


def test_documents_are_packed_as_the_chat_template_writes_them(taught):
    _, tokenizer, teacher, packer = taught
    rng = random.Random(0)
    for form in (form for form in teacher.FORMS if form != "index"):
        for _ in range(20):
            turns = teacher.write(rng, form)
            ids, labels, thoughts, gathers, finds = packer.encode(turns)
            messages = [
                {"role": role, "content": text}
                for turn in turns
                for role, text in zip(("user", "assistant"), turn, strict=False)
            ]
            assert (
                ids
                == tokenizer(
                    tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False
                )["input_ids"]
            )
            learned = tokenizer.decode([label for label in labels if label != IGNORE])
            assert learned.split(tokenizer.eos_token) == [*(f" {turn.assistant}" for turn in turns), ""]
            assert len(thoughts) == len(gathers) == len(finds) == len(ids)
            assert [tokenizer.decode([t]) for t in thoughts if t != IGNORE] == [
                f" {turn.thought}" for turn in turns if turn.thought
            ]
            assert all(
                label != IGNORE for label, thought in zip(labels, thoughts, strict=True) if thought != IGNORE
            )


def test_only_the_letters_of_an_index_are_learned(taught):
    _, tokenizer, teacher, packer = taught
    ids, labels, *_ = packer.encode(teacher.write(random.Random(0), "index"))
    learned = [tokenizer.decode([label]).strip() for label in labels if label != IGNORE]
    assert all(len(text) == 1 for text in learned[:-1]) and learned[-1] == tokenizer.eos_token
    assert [i for i, label in zip(ids, labels, strict=True) if label != IGNORE] == [
        label for label in labels if label != IGNORE
    ]


def test_the_receiver_is_never_told_a_fact():
    """Its facts are invented: a true value comes up no more often than chance has it."""
    truth = {(fact.entity, fact.attribute): fact.value for fact in FACTS}
    teacher, rng = TEACHERS["receiver"](FACTS), random.Random(0)
    drawn = [
        fact
        for _ in range(500)
        for fact in teacher.invent(rng, 4, "country", teacher.writer.values["country"])
    ]
    true = sum(truth[fact.entity, "country"] == fact.value for fact in drawn) / len(drawn)
    assert true < 0.06  # 43 countries, the commonest about 3 %


def test_the_first_layer_starts_by_looking_back():
    """`mimetic_init_`: head h of layer 0 looks h + 1 tokens back."""
    for role in ROLES:
        torch.manual_seed(0)
        model = new_model(role, TOKENIZERS[role](FACTS))
        model.set_attn_implementation("eager")
        ids = torch.randint(10, 1000, (2, 40))
        attention = model(ids, output_attentions=True).attentions[0]
        for head in range(model.config.num_attention_heads):
            assert attention[:, head].diagonal(-(head + 1), 1, 2).mean() > 0.7


@pytest.mark.parametrize("taught", ["sharer"], indirect=True)
@pytest.mark.parametrize("count", [1, 4, 16])
def test_a_reader_is_told_where_the_name_and_the_value_stand(taught, count):
    _, tokenizer, teacher, packer = taught
    rng = random.Random(count)
    truth = {(fact.entity, fact.attribute): fact.value for fact in FACTS}
    true = 0
    for _ in range(20):
        turns = teacher.write(rng, f"read_{count}")
        passage = turns[0].user.split("\n\n")[0]
        ids, labels, _, gathers, finds = packer.encode(turns)
        kickstarts = [i - 1 for i in range(1, len(ids)) if labels[i] != IGNORE and labels[i - 1] == IGNORE]
        assert [i for i, far in enumerate(finds) if far != IGNORE] == kickstarts and len(kickstarts) == len(
            turns
        )
        for turn, at in zip(turns, kickstarts, strict=True):
            value = at - finds[at]
            assert turn.source.statement in passage and turn.source.statement.endswith(f" {turn.assistant}.")
            assert turn.source.entity in turn.user.split("\n\n")[-1]
            assert value < kickstarts[0] and f"{tokenizer.decode(ids[: value + 1])}.".endswith(
                f" {turn.source.statement}"
            )
            for reader in (value, at):
                assert tokenizer.decode(ids[: reader - gathers[reader] + 1]).endswith(
                    f" {turn.source.entity}"
                )
            true += turn.assistant in (
                truth.get((turn.source.entity, attribute)) for attribute in teacher.by_attribute
            )
    assert true < 0.3 * 20 * min(count, 8)


@torch.no_grad()
@pytest.mark.parametrize(
    ("taught", "form"),
    [("sharer", "match"), ("sharer", "read_4"), ("receiver", "match")],
    indirect=["taught"],
)
def test_the_loss_is_that_of_answers_of_thoughts_in_the_middle_and_of_looks(taught, form):
    """Against the plain way: every position's logits, then the labelled ones."""
    role, tokenizer, _, packer = taught
    torch.manual_seed(0)
    model = new_model(role, tokenizer).eval()
    model.set_attn_implementation("eager")
    ids, labels, thoughts, gathers, finds = packer.batch(random.Random(0), {form: 1.0}, 2, 128)
    outputs = model(ids, output_hidden_states=True, output_attentions=True)
    middle = outputs.hidden_states[3]
    middle = middle / middle.pow(2).mean(-1, keepdim=True).sqrt()
    scores = middle @ model.get_input_embeddings().weight.T / model.config.hidden_size**0.5
    expected = 0
    for logits, targets in ((outputs.logits, labels), (scores, thoughts)):
        picked = [
            logits[row, column - 1].log_softmax(-1)[targets[row, column]]
            for row, column in (targets[:, 1:] != IGNORE).nonzero() + torch.tensor([0, 1])
        ]
        expected -= torch.stack(picked).mean()
    for layer, distances in ((1, gathers), (2, finds)):
        wanted = (distances != IGNORE).nonzero().tolist()
        assert bool(wanted) == (form == "read_4")
        if wanted:
            heads = range(model.config.num_attention_heads)
            attention = outputs.attentions[layer].clamp_min(1e-9)
            seen = [
                [attention[row, head, at, at - distances[row, at]].log() for row, at in wanted]
                for head in heads
            ]
            expected += max(-sum(head) / len(wanted) for head in seen)
    torch.testing.assert_close(
        answer_loss(model, ids, labels, thoughts, gathers, finds), expected, atol=1e-4, rtol=1e-4
    )


def test_only_what_is_taught_changes(taught):
    role, tokenizer, _, packer = taught
    model = new_model(role, tokenizer)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    arguments = PretrainingArguments(
        stages=[(2, {"quiz": 1})],
        taught=["self_attn"],
        sequences=2,
        eval_documents=2,
        other_lr=0.1,
        warmup_steps=1,
    )
    pretrain(model, packer, arguments)
    changed = {
        name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])
    }
    assert changed == {name for name in before if "self_attn" in name}


def test_the_learning_rate_rises_stays_and_falls():
    arguments = PretrainingArguments(warmup_steps=10, decay=0.5)
    factors = [schedule(step, 100, arguments) for step in range(100)]
    assert factors[0] == 0.1 and factors[10] == factors[49] == 1.0 and factors[-1] == pytest.approx(0.02)


def test_a_build_is_whole_and_the_same_for_a_seed(tmp_path):
    one = PretrainingArguments(stages=[(1, {"index": 1})], sequences=2, eval_documents=2)
    recipes = {role: [one, one] for role in ROLES}
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        build(tmp_path / name, seed=seed, recipes=recipes)
    for role in ROLES:
        weights = {
            name: (tmp_path / name / role / "model.safetensors").read_bytes()
            for name in ("first", "again", "other")
        }
        assert weights["first"] == weights["again"] != weights["other"]
        assert (tmp_path / "first" / role / "tokenizer.json").exists()
    assert set(RECIPES) == set(ROLES)
