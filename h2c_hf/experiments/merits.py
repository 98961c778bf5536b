"""The questions of an ablation, on Atlas, and the tables of the answers.

Carried facts: by letter (`choice`) and in words (`open`), and of passages of 1, 4 and 16 invented facts that
the Sharer alone reads. Harm: questions whose answer stands in the Receiver's own prompt, if the Sharer reads
it too (`told`) or knows something else (`against`); and the perplexity of text of the kind that the Receiver
was taught (`text`).
"""

import numpy as np

from ..atlas.documents import atlas_quizzes
from ..atlas.questions import atlas_passages, atlas_questions, atlas_told
from ..data.rows import spread_rows
from ..evaluation.perplexity import perplexity
from ..evaluation.runner import evaluate
from ..modeling import H2CForCausalLM, H2CProcessor
from ..reports.statistics import mean_difference, recovered


FACTS = (1, 4, 16)  # a passage
# Of each merit its form of question, and who is asked with a bridge, or once for all bridges. "shuffled" has
# another question's states.
FORMS = {
    "choice": "choice",
    "open": "open",
    **{f"facts_{n}": "open" for n in FACTS},
    "told": "choice",
    "against": "choice",
}
ON_FEW = {"choice": ["h2c", "shuffled"], "open": ["h2c", "shuffled"]}
ON_ALL = {
    **ON_FEW, "facts_1": ["h2c"], "facts_4": ["h2c"], "facts_16": ["h2c", "shuffled"], "told": ["h2c"],
    "against": ["h2c"], "text": ["h2c"],
}  # fmt: skip
ALONE = {
    "choice": ["receiver", "sharer"], "open": ["receiver", "sharer"], "facts_1": ["sharer"],
    "facts_4": ["sharer"], "facts_16": ["receiver", "sharer"], "told": ["receiver"], "against": ["receiver"],
    "text": ["receiver"],
}  # fmt: skip
CONVERSATIONS = 300
FEWER = 450  # questions, spread over all, of merits other than choice and open


def questions_of(merit: str, split: str) -> list[dict]:
    if merit in ON_FEW:
        return atlas_questions(split)
    passage = merit.startswith("facts_")
    questions = (
        atlas_passages(split, int(merit.removeprefix("facts_")), invented=True)
        if passage
        else atlas_told(split, merit == "against")
    )
    return [questions[row] for row in spread_rows(len(questions), FEWER)]


def conversations(split: str) -> list[tuple[list[dict], str]]:
    """Quizzes of several turns about facts that stand in them; the last answer is the target."""
    chats = [quiz["messages"] for quiz in atlas_quizzes(split, variants=4)[:CONVERSATIONS]]
    return [(messages[:-1], messages[-1]["content"]) for messages in chats]


def ask(
    model: H2CForCausalLM, processor: H2CProcessor, split: str, merits: dict[str, list[str]]
) -> dict[str, dict]:
    """Return {"correct": {"merit/method": 1 or 0 by question}, "perplexity": {method: of `text`}}."""
    correct, found = {}, {}
    for merit, methods in merits.items():
        if merit == "text":
            rows, _ = perplexity(
                model,
                processor,
                conversations(split),
                methods,
                {"receiver": 512, "sharer": 512},
                batch_size=64,
            )
            found = {method: row["perplexity"] for method, row in rows.items()}
            continue
        for method, result in evaluate(
            model, processor, questions_of(merit, split), methods, form=FORMS[merit]
        ).items():
            correct[f"{merit}/{method}"] = [int(right) for right in result["correct"]]
    return {"correct": correct, "perplexity": found}


def knowledge_table(rows: list[tuple[str, str, dict, list[dict]]], alone: dict, split: str) -> str:
    """Return the table of carried facts that the Sharer knows, a row a form and run.

    Args:
        rows: (form, run, the run's options, its cells, one a seed).
        alone: the output of `ask` for both models alone.
    """
    titles = (
        "form",
        "run",
        "seeds",
        "facts",
        "parameters",
        "choice, recovered (%)",
        "with another's states (%)",
    )
    titles += ("open, of the Sharer's (%)", "with another's states (%)")
    subjects, lines = np.array([question["subject"] for question in questions_of("choice", split)]), []
    for form, run, options, cells in rows:
        asked = (
            np.isin(subjects, options["without"]) if options.get("without") else np.ones(len(subjects), bool)
        )
        right = {
            name: values[:, asked] for name, values in by_seed(cells).items() if name.split("/")[0] in ON_FEW
        }
        base = {
            name: np.array(alone["correct"][name])[asked]
            for name in ("choice/receiver", "choice/sharer", "open/sharer")
        }
        lead = [
            recovered(one, base["choice/receiver"], base["choice/sharer"])
            for one in averaged(right["choice/h2c"])
        ]
        written = [
            recovered(one, np.zeros(asked.sum()), base["open/sharer"]) for one in averaged(right["open/h2c"])
        ]
        lines.append(
            [
                form, run, str(len(cells)), f"{cells[0]['facts']:,}", f"{cells[0]['parameters']:,}",
                figure(lead), f"{100 * right['choice/shuffled'].mean():.1f}", figure(written),
                f"{100 * right['open/shuffled'].mean():.1f}",
            ]
        )  # fmt: skip
    return markdown(titles, lines)


def harm_table(rows: list[tuple[str, list[dict]]], alone: dict) -> str:
    """Return the table of facts carried from passages, and of the Receiver's lost answers, a row a form.
    rows: (form, a cell a seed)."""
    titles = (
        "form",
        "seeds",
        *(f"passage of {n}, exact match (%)" for n in FACTS),
        "of 16, with another's states (%)",
    )
    titles += ("told, points lost", "against the Sharer, points lost", "text, perplexity over the Receiver's")
    lines = []
    for form, cells in rows:
        right = by_seed(cells)
        read = [
            figure([mean_difference(one, np.zeros(len(one))) for one in averaged(right[f"facts_{n}/h2c"])])
            for n in FACTS
        ]
        lost = [
            figure(
                [
                    mean_difference(alone["correct"][f"{merit}/receiver"], one)
                    for one in averaged(right[f"{merit}/h2c"])
                ]
            )
            for merit in ("told", "against")
        ]
        text = [cell["perplexity"]["h2c"] / alone["perplexity"]["receiver"] for cell in cells]
        lines.append(
            [
                form, str(len(cells)), *read, f"{100 * right['facts_16/shuffled'].mean():.1f}", *lost,
                f"{np.mean(text):.3f} ({min(text):.3f} to {max(text):.3f})",
            ]
        )  # fmt: skip
    return markdown(titles, lines)


def by_seed(cells: list[dict]) -> dict[str, np.ndarray]:
    """{"merit/method": (seeds, questions)}."""
    return {name: np.array([cell["correct"][name] for cell in cells]) for name in cells[0]["correct"]}


def averaged(right: np.ndarray) -> list[np.ndarray]:
    """The mean over seeds, a number a question; then each seed, if there are several."""
    return [right.mean(0), *(right if len(right) > 1 else [])]


def figure(rows: list[dict]) -> str:
    """Fractions as per cent: the seeds' mean, its interval over questions, and the least and the most of a
    seed. (There is no share of a lead that is none.)"""
    value, low, high = (
        "-" if rows[0][name] is None else f"{100 * rows[0][name]:.1f}" for name in ("value", "low", "high")
    )
    seeds = [100 * row["value"] for row in rows[1:] if row["value"] is not None]
    return f"{value} ({low} to {high})" + (f" [{min(seeds):.1f}, {max(seeds):.1f}]" if seeds else "")


def markdown(titles: tuple[str, ...], lines: list[list[str]]) -> str:
    return "\n".join(
        [
            f"| {' | '.join(titles)} |",
            "| --- " * len(titles) + "|",
            *(f"| {' | '.join(line)} |" for line in lines),
        ]
    )
