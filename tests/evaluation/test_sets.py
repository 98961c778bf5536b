"""Sets of questions in words: what they may be, and their figures on answers that were made up."""

import json

import numpy as np
import pytest
from pairs import tiny_processor

from h2c_hf.data.questions import in_words
from h2c_hf.evaluation.sets import QuestionSet, set_report, tokens_of
from h2c_hf.reports.page import equivalence_cell, markdown
from h2c_hf.reports.page import sets as page_of_sets
from h2c_hf.reports.report import build_report, save_report
from h2c_hf.reports.schema import load_report


TOKENIZER = tiny_processor().receiver_tokenizer
PRIVATE = {
    "name": "facts",
    "regime": "private",
    "path": "atlas",
    "form": "hand_off",
    "facts": 2,
    "split": "test",
}
REPEAT = {"name": "repeat", "regime": "private", "path": "atlas", "form": "repeat", "split": "test"}
COUNT = 40
QUESTIONS = [
    in_words(f"Where is {n}?", [f"place{n}", f"spot{n}"], f"{n} is in place{n}.", "place", entity=str(n))
    for n in range(COUNT)
]
DONORS = [(row - 1) % COUNT for row in range(COUNT)]


def answered(**right: int) -> dict[str, dict]:
    """Results with so many right answers by method; the shuffled control follows 30 of 40 donors."""
    results = {}
    for name, count in right.items():
        results[name] = {"predictions": [f"place{row}" if row < count else "nowhere" for row in range(COUNT)]}
    results["shuffled"] = {
        "predictions": [f"place{DONORS[row]}" if row < 30 else "nowhere" for row in range(COUNT)],
        "donors": DONORS,
    }
    return results


def report_of(results: dict, **entry) -> dict:
    return set_report(QuestionSet.parse({**PRIVATE, **entry}), QUESTIONS, results, TOKENIZER, examples=2)


def test_a_set_has_a_name_a_regime_and_a_source():
    one = QuestionSet.parse(
        "name=new,regime=private,path=atlas,form=hand_off,split=test,limit=7,answer_tokens=9"
    )
    assert (one.name, one.regime, one.limit, one.answer_tokens) == ("new", "private", 7, 9)
    told = {"name": "new", "limit": 7, "answer_tokens": 9}
    assert one == QuestionSet.parse(
        {"path": "atlas", "form": "hand_off", "split": "test", "regime": "private", **told}
    )
    questions, counts = one.load()
    assert (
        len(questions) == 7
        and counts == {"unusable": 0}
        and all(question["passage"] for question in questions)
    )
    shared = QuestionSet.parse(
        {"name": "known", "regime": "shared", "path": "atlas", "form": "open", "split": "test", "limit": 5}
    )
    assert all("passage" not in question and question["answers"] for question in shared.load()[0])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {**PRIVATE, "regime": "secret"},
            "regime of the set 'facts' is 'secret'; expected one of private, shared",
        ),
        ({**PRIVATE, "regime": None}, "has no regime"),
        ({**PRIVATE, "limit": 1}, "limit of the set 'facts' is 1; expected at least 2"),
        ({**PRIVATE, "limit": "few"}, "A number of the set 'facts' is no number"),
        ({**PRIVATE, "tokens": 4}, "has tokens=4 and the form 'hand_off'; expected 'repeat'"),
        ({**PRIVATE, "fact": 4}, "no field 'fact'; did you mean 'facts'"),
    ],
)
def test_a_set_that_cannot_be_is_refused(entry, message):
    with pytest.raises(ValueError, match=message):
        QuestionSet.parse(entry)


def test_the_regimes_are_not_mixed(tmp_path):
    with pytest.raises(
        ValueError, match=r"'facts' is shared \(both models .*, and \d+ of its \d+ questions have a passage"
    ):
        QuestionSet.parse({**PRIVATE, "regime": "shared"}).load()
    (tmp_path / "web.jsonl").write_text(
        "".join(json.dumps({"question": f"{n}?", "answers": ["x"]}) + "\n" for n in range(3))
    )
    with pytest.raises(ValueError, match="and 0 of its 3 questions have a passage; expected all"):
        QuestionSet.parse({"name": "web", "regime": "private", "path": str(tmp_path / "web.jsonl")}).load()
    methods = ["receiver", "skyline", "h2c"]
    assert QuestionSet.parse(PRIVATE).methods(methods) == methods
    assert QuestionSet.parse({**PRIVATE, "regime": "shared"}).methods(methods) == ["receiver", "h2c"]


@pytest.mark.parametrize("tokens", [4, 10])
def test_texts_are_cut_to_so_many_tokens(tokens):
    one = QuestionSet.parse({**REPEAT, "tokens": tokens, "limit": 20})
    assert one.answer_tokens >= tokens + 1
    questions, _ = one.load(TOKENIZER)
    assert len(questions) == 20
    for question in questions:
        (text,) = question["answers"]
        assert (
            len(TOKENIZER(text)["input_ids"]) == tokens == len(tokens_of(text, question, TOKENIZER))
            and question["passage"] == text
        )


def test_the_figures_are_those_of_the_answers():
    made = report_of(answered(h2c=36, receiver=0, sharer=40, zeros=4))
    assert (
        made["methods"]["h2c"]["accuracy"] == 0.9 == made["methods"]["h2c"]["contained"]
        and made["methods"]["h2c"]["f1"] == 0.9
    )
    assert made["recovered"]["value"] == pytest.approx(0.9)
    assert made["pairing_gain"]["value"] == pytest.approx(0.9) and made["pairing_gain"]["f1"][
        "value"
    ] == pytest.approx(0.9)
    assert made["information_gain"]["control"] == "zeros" and made["information_gain"][
        "value"
    ] == pytest.approx(0.8)
    assert made["follow_rate"]["value"] == 0.75 and made["follow_rate"]["over_h2c"] == pytest.approx(
        0.75 / 0.9
    )
    assert [(row["first"], row["second"]) for row in made["comparisons"]] == [
        ("h2c", name) for name in ("receiver", "sharer", "zeros", "shuffled")
    ]
    assert [example["expected"] for example in made["examples"]] == [
        ["place0", "spot0"],
        ["place39", "spot39"],
    ]
    assert (
        made["examples"][1]["answers"]["h2c"] == "nowhere"
        and made["examples"][1]["passage"] == "39 is in place39."
    )


def test_recovered_needs_a_sharer_that_leads():
    made = report_of(answered(h2c=0, receiver=17, sharer=0))
    assert (
        made["recovered"]["value"] is None
        and "does not lead the Receiver significantly (-42.5 points" in made["recovered"]["reason"]
    )
    assert made["follow_rate"]["over_h2c"] is None


def test_a_wrong_message_is_compared_with_the_receiver_where_both_read():
    results = answered(h2c=20, receiver=20, sharer=30)
    results["shuffled"] = {**results["receiver"], "donors": DONORS}
    (harm,) = [
        row for row in report_of(results, regime="shared")["comparisons"] if row["first"] == "shuffled"
    ]
    assert (
        harm["second"] == "receiver"
        and harm["value"] == 0
        and harm["equivalence"] == {"margin": 0.02, "p": pytest.approx(0.98**COUNT), "equivalent": False}
    )


def test_texts_that_hold_an_answer_are_compared_as_well():
    results = answered(h2c=0, receiver=0, sharer=30)
    results["h2c"]["predictions"][:10] = [f"It is in place{row}, I think." for row in range(10)]
    made = report_of(results, regime="shared")
    (row,) = [row for row in made["comparisons"] if (row["first"], row["second"]) == ("h2c", "receiver")]
    assert row["value"] == 0 and row["contained"]["value"] == 0.25
    assert (
        row["contained"]["p"] == pytest.approx(2 * 0.5**10)
        and not row["contained"]["equivalence"]["equivalent"]
    )
    assert "#### facts: differences, an answer contained" in "\n".join(page_of_sets({"facts": made}))
    private = page_of_sets({"facts": report_of(results)})
    assert "an answer contained" not in "\n".join(private)


def test_tokens_are_counted_in_their_places():
    questions = [in_words("Repeat the text.", [text], text) for text in ("abcd", "efgh")]
    results = {name: {"predictions": ["abXd", "ef"]} for name in ("receiver", "h2c", "sharer")}
    results["shuffled"] = {"predictions": ["efgh", ""], "donors": [1, 0]}
    one = QuestionSet.parse({**REPEAT, "tokens": 4})
    made = set_report(one, questions, results, TOKENIZER, examples=0)
    assert (
        made["methods"]["h2c"]["token_accuracy_by_position"] == [1, 1, 0, 0.5]
        and made["methods"]["h2c"]["token_accuracy"] == 5 / 8
    )
    assert made["methods"]["shuffled"]["token_accuracy"] == 0 and made["follow_rate"]["value"] == 0.5


def test_the_page_keeps_the_regimes_apart(tmp_path):
    results = answered(h2c=36, receiver=0, sharer=40, skyline=38)
    sets = {
        "facts": report_of(results),
        "known": report_of(answered(h2c=20, receiver=20, sharer=20), regime="shared"),
    }
    correct = {name: {**result, "correct": judged_right(result)} for name, result in results.items()}
    report = build_report(correct, {}, QUESTIONS, sets=sets)
    save_report(report, tmp_path)
    assert (
        load_report(tmp_path / "report.json")["sets"]["facts"]["regime"] == "private"
        and "confusion" not in report
    )
    page = markdown(report)
    private, shared = (
        page[page.index("## Private regime") : page.index("## Shared regime")],
        page[page.index("## Shared regime") :],
    )
    shared = shared[: shared.index("\n## ")]
    assert "### facts" in private and "### known" not in private and "### known" in shared
    assert "skyline (Receiver" in private and "skyline" not in shared
    assert "- follow rate, the donor's answer with another question's states: 75.0 %" in private
    assert (
        "recovered, (H2C - Receiver) / (Sharer - Receiver): not defined: the Sharer does not lead" in shared
    )
    assert "not shown, within 2 points, p = 0.4" in shared and "not shown, within 2 points" in private
    assert (
        equivalence_cell({"margin": 0.02, "p": 0.01, "equivalent": True}) == "yes, within 2 points, p = 0.01"
    )


def judged_right(result: dict) -> np.ndarray:
    return np.array([text == f"place{row}" for row, text in enumerate(result["predictions"])])
