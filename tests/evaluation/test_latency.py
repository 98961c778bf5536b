import pytest

from h2c_hf.atlas.questions import atlas_questions
from h2c_hf.evaluation.latency import break_even, per_token, sweep, time_methods
from h2c_hf.evaluation.methods import METHODS
from h2c_hf.prompts import PROMPTS


QUESTIONS = atlas_questions("validation")[:2]
PARTS = {
    "receiver": {"receiver_prefill", "decode", "other"},
    "sharer": {"sharer_prefill", "decode", "other"},
    "h2c": {"sharer_prefill", "receiver_prefill", "bridge", "decode", "other"},
    "text_to_text": {"sharer_writes", "receiver_prefill", "decode", "other"},
}


def test_every_method_is_timed_by_part(atlas):
    model, processor = atlas
    methods = [name for name in METHODS if name not in ("skyline", "lora", "text_to_text_draft")]
    found = time_methods(model, processor, QUESTIONS, methods, [5], adapter=model.bridge)
    assert set(found["latency"]) == set(found["latency_parts"]) == set(methods)
    for name, row in found["latency"].items():
        assert 0 < row["ttft_ms_median"] <= row["ttft_ms_p90"]
        parts = found["latency_parts"][name]
        assert set(parts) == PARTS.get(
            name, PARTS["text_to_text"] if name.startswith("text_to_text") else PARTS["h2c"]
        )
        assert all(value > 0 for value in parts.values())
    assert [row["tokens"] for row in found["output_lengths"]] == [1, 5]
    for name in PARTS:
        row = found["latency"][name]
        assert row["tokens_per_second"] == pytest.approx(1000 / row["per_token_ms_median"])
    bytes_of = found["memory"]["weights_bytes"]
    assert bytes_of["bridge"] == 4 * model.bridge.num_parameters()
    assert bytes_of["sharer"] >= 4 * model.sharer.num_parameters()


def test_one_question_is_timed_too(atlas):
    """With fewer questions than warm up."""
    found = time_methods(*atlas, QUESTIONS[:1], ["receiver", "h2c", "sharer"], [2])
    assert all(row["ttft_ms_median"] > 0 for row in found["latency"].values()) and set(found["latency"]) == {
        "receiver",
        "h2c",
        "sharer",
    }


def test_a_sweep_writes_as_many_tokens_as_it_says(atlas, monkeypatch):
    """Also past the end token: else longer outputs would cost nothing."""
    model, processor = atlas
    written = []
    for role, base in (("receiver", model), ("sharer", model.sharer)):
        generate = base.generate

        def counted(*args, generate=generate, role=role, **kwargs):
            ids = generate(*args, **kwargs)
            prompt = args[0] if args else kwargs["input_ids"]
            written.append((role, ids.shape[1] - prompt.shape[1]))
            return ids

        monkeypatch.setattr(base, "generate", counted)
    sweep(model, processor, QUESTIONS[:1], ["receiver", "sharer"], [7, 3], prompts=PROMPTS)
    assert written == [
        (role, tokens) for tokens in (1, 3, 7) for _ in range(2) for role in ("receiver", "sharer")
    ]


@pytest.mark.parametrize(
    ("later", "saved", "tokens"), [(30.0, 10.0, 4), (31.0, 10.0, 5), (-1.0, 10.0, 1), (30.0, -1.0, None)]
)
def test_break_even_is_where_the_lines_cross(later, saved, tokens):
    latency = {
        "h2c": {"ttft_ms_median": 20 + later, "per_token_ms_median": 20 - saved},
        "sharer": {"ttft_ms_median": 20.0, "per_token_ms_median": 20.0},
    }
    assert break_even(latency)["tokens"] == tokens
    if tokens and tokens > 1:
        cost = {
            name: [row["ttft_ms_median"] + (n - 1) * row["per_token_ms_median"] for n in range(1, 9)]
            for name, row in latency.items()
        }
        assert next(n for n in range(1, 9) if cost["h2c"][n - 1] <= cost["sharer"][n - 1]) == tokens


def test_a_further_token_is_the_slope():
    assert (
        per_token([{"tokens": 1, "h2c": 10.0}, {"tokens": 4, "h2c": 5.0}, {"tokens": 11, "h2c": 30.0}], "h2c")
        == 2.0
    )
