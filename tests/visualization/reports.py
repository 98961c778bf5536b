"""Two synthetic reports, for layout alone: as small as a report gets, and larger than any will be."""

import math
import random


MMLU = """
abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry
college_computer_science college_mathematics college_medicine college_physics computer_security
conceptual_physics econometrics electrical_engineering elementary_mathematics formal_logic global_facts
high_school_biology high_school_chemistry high_school_computer_science high_school_european_history
high_school_geography high_school_government_and_politics high_school_macroeconomics
high_school_mathematics high_school_microeconomics high_school_physics high_school_psychology
high_school_statistics high_school_us_history high_school_world_history human_aging human_sexuality
international_law jurisprudence logical_fallacies machine_learning management marketing medical_genetics
miscellaneous moral_disputes moral_scenarios nutrition philosophy prehistory professional_accounting
professional_law professional_medicine professional_psychology public_relations security_studies sociology
us_foreign_policy virology world_religions
""".split()  # noqa: SIM905
METHODS = [
    "receiver", "text_to_text", "text_to_text_answer", "text_to_text_reasoning", "h2c", "sharer", "shuffled",
    "zeros", "noise", "adapter", "a_new_method_with_an_uncommonly_long_name_of_many_words", "another",
]  # fmt: skip
PARTS = ["sharer_prefill", "sharer_writes", "receiver_prefill", "bridge", "decode", "other"]


# What the schema asks of every report, and no figure draws.
REQUIRED = {
    "schema_version": 1, "by_subject": {}, "environment": {"python": "3", "machine": "one"},
    "recovered": {"value": 0.5, "low": 0.4, "high": 0.6},
    "information_gain": {"value": 0.2, "low": 0.1, "high": 0.3, "p": 0.01, "control": "zeros"},
}  # fmt: skip


def report(
    methods: list[str],
    subjects: list[str],
    layers: int,
    unbridged: int,
    tokens: int,
    steps: int,
    sets: list[str],
    examples: int = 1,
    words: int = 6,
) -> dict:
    draw = random.Random(0)
    rows = [None] * unbridged

    def text(n):
        return " ".join(
            draw.choice(["Wm", "über-long-compound", "$5", "日本", "the", "of", "WWWW"]) for _ in range(n)
        )

    def blocks(make):
        return {kind: rows + [make() for _ in range(layers - unbridged)] for kind in ("key", "value")}

    def groups(names):
        return {name: {"n": draw.randrange(1, 2000), **{m: draw.random() for m in methods}} for name in names}

    accuracy = {name: draw.choice([0, 1, 0.25, draw.random()]) for name in methods}
    question, choices = text(words), [text(words // 2 + 1) for _ in range(4)]
    answers = {
        name: {"choice": f"A. {choices[0]}", "open": draw.choice([text(3 * words), choices[1]])}
        for name in methods
    }
    times = {name: math.exp(draw.uniform(1, 9)) for name in methods}
    return {
        **REQUIRED,
        "methods": {
            name: {
                "accuracy": value, "accuracy_low": max(0, value - 0.03),
                "accuracy_high": min(1, value + 0.03), "n": 14042, "ttft_ms_median": times[name],
                "ttft_ms_p90": 1.4 * times[name],
            }
            for name, value in accuracy.items()
        },
        "latency_parts": {
            name: {part: draw.random() * times[name] for part in draw.sample(PARTS, 3)} for name in methods
        },
        "output_lengths": [
            {"tokens": n, **{name: times[name] * n for name in methods}} for n in (1, 8, 64, 512)
        ],
        "gates": blocks(draw.random),
        "injection": {
            **blocks(lambda: [math.exp(draw.uniform(-6, 2)) for _ in range(tokens)]),
            "tokens": [
                draw.choice(["\n", " the", "日", "<|im_start|>", "$x$", "Wieder", "\t"])
                for _ in range(tokens)
            ],
        },
        "training": {"history": list(history(draw, layers, unbridged, steps, sets))},
        "by_subject": groups(subjects),
        "by_category": groups(["STEM", "humanities", "social sciences", "other"]),
        "confusion": {name: [[draw.randrange(3600) for _ in range(4)] for _ in range(4)] for name in methods},
        "probability_shift": {
            "question": question, "choices": choices, "expected": "B",
            "methods": {m: [draw.random() for _ in range(4)] for m in methods},
        },
        "examples": [
            {"question": question, "choices": choices, "expected": choices[1], "answers": answers}
        ] * examples,
    }  # fmt: skip


def history(draw: random.Random, layers: int, unbridged: int, steps: int, sets: list[str]):
    """In the entries that the Trainer logs: loss, gates and gradients, validation."""
    for step in range(10, 10 * steps + 1, 10):
        yield {"step": step, "loss": 2 + draw.random(), "grad_norm": 0.1, "learning_rate": 1e-3 / step}
        gates = {
            f"gate/{kind}/{layer}": 0.7 + step * layer * 1e-6
            for kind in ("key", "value")
            for layer in range(unbridged, layers)
        }
        yield {
            "step": step,
            **gates,
            **{f"grad_norm/{part}": draw.random() for part in ("attention", "ffn", "gate")},
        }
    for name in sets:
        for step in (10, 10 * steps):
            metrics = {"loss": 1.0, "accuracy": draw.random(), "choice_accuracy": 0.5, "runtime": 1.0}
            yield {
                "step": step,
                **{
                    f"eval_{name}_{metric}" if name else f"eval_{metric}": value
                    for metric, value in metrics.items()
                },
            }


SMALL = report(["receiver", "h2c", "sharer", "zeros"], ["capital"], 2, 0, 5, 3, [""])
LARGE = report(
    METHODS, MMLU, 32, 8, 200, 300, [f"validation_set_number_{n}_with_a_long_name" for n in range(9)], 2, 40
)
REPORTS = {
    "small": SMALL,
    "large": LARGE,
    "shut": {
        "injection": {"key": [[0.0, 0.0]], "value": [[0.0, 0.0]], "tokens": ["a", "b"]},
        "gates": {"key": [0.0], "value": [0.0]},
    },
    "labelled tokens": {"injection": report(["h2c"], ["capital"], 24, 0, 64, 2, [""])["injection"]},
}
