"""Sets of questions that are answered in words: each by name, in one of two regimes, with figures of its own.

In the *private* regime only the Sharer reads the passage, and any working channel gains; in the *shared*
regime both models read the question, and only the Sharer's knowledge can gain. The two are never mixed in a
table.
"""

from dataclasses import dataclass, fields

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..data.rows import spread_rows
from ..data.sources import ReportSource
from ..prompts import answer_ids, open_prompt, user_turn
from ..reports.page import CONTROLS, ONLY_IN
from ..reports.statistics import accuracy_row, difference, equivalence, mean_difference, recovered
from .answers import exact, judged
from .hand_off import words_row
from .runner import MAX_ANSWER_TOKENS


NUMBERS = ("limit", "tokens", "answer_tokens", "draft_tokens")
REGIMES = {"private": "only the Sharer reads the passage", "shared": "both models read the question"}


@dataclass
class QuestionSet:
    """One entry of `sets` in an evaluation.yaml.

    Args:
        name: how reports call it.
        regime: "private" or "shared"; the questions must have passages, or none.
        source: of the questions: the fields of `h2c_hf.data.sources.DataSource`, test splits and new words
            included.
        limit: so many questions, spread over all.
        tokens: of the form "repeat": texts of exactly so many tokens of the Receiver, and the accuracy at
            each position.
        answer_tokens: an answer that has not ended after so many tokens is cut.
        draft_tokens: so many tokens the Sharer writes first, which the bridge reads after its prompt; by
            default as many as the bridge's generation config says.
    """

    name: str
    regime: str
    source: ReportSource
    limit: int | None = None
    tokens: int | None = None
    answer_tokens: int = MAX_ANSWER_TOKENS
    draft_tokens: int | None = None

    def __post_init__(self):
        if self.regime not in REGIMES:
            raise ValueError(
                f"regime of the set {self.name!r} is {self.regime!r}; expected one of {', '.join(REGIMES)}."
            )
        for name, least in (("limit", 2), ("tokens", 1), ("answer_tokens", 1), ("draft_tokens", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} of the set {self.name!r} is {value}; expected at least {least}.")
        if self.tokens:
            if self.source.form != "repeat":
                raise ValueError(
                    f"The set {self.name!r} has tokens={self.tokens} and the form {self.source.form!r}; "
                    "expected 'repeat'."
                )
            # So many words have at least so many tokens.
            self.source.fewest = self.source.most = self.tokens
            self.answer_tokens = max(self.answer_tokens, self.tokens + 8)
            if self.limit and self.source.count is None:  # some texts cannot be cut to so many tokens
                self.source.count = 4 * self.limit

    @classmethod
    def parse(cls, entry: "str | dict | QuestionSet") -> "QuestionSet":
        """A set from a mapping (yaml) or `name=...,regime=...,path=...` (the command line).

        Raises:
            ValueError: for an unknown field, a missing name or regime, or a value that it cannot have.
        """
        if isinstance(entry, cls):
            return entry
        if isinstance(entry, str):
            entry = {
                key.strip(): value.strip()
                for key, _, value in (part.partition("=") for part in entry.split(","))
            }
        own = {field.name for field in fields(cls)} - {"source"}
        told = {name: value for name, value in entry.items() if name in own}
        for name in ("name", "regime"):
            if not told.get(name):
                written = ",".join(f"{key}={value}" if value else key for key, value in entry.items())
                raise ValueError(
                    f"The set {written!r} has no {name}; expected name=NAME,path=DATA,regime=private, or "
                    "regime=shared."
                )
        try:
            numbers = {name: int(told[name]) for name in NUMBERS if told.get(name) is not None}
        except (TypeError, ValueError):
            raise ValueError(f"A number of the set {told['name']!r} is no number: {told}.") from None
        source = ReportSource.parse({name: value for name, value in entry.items() if name not in own})
        return cls(told["name"], told["regime"], source, **numbers)

    def load(
        self, tokenizer: PreTrainedTokenizerBase | None = None, template_kwargs: dict | None = None
    ) -> tuple[list[dict], dict]:
        """The questions, and counts of the records.

        Args:
            tokenizer: the Receiver's; without it, texts of a set with `tokens` are not cut yet.
            template_kwargs: variables of its chat template, here and below.

        Raises:
            ValueError: for data that cannot be read, or questions of the other regime.
        """
        questions, unusable = self.source.questions()
        with_passage = sum("passage" in question for question in questions)
        if with_passage != (len(questions) if self.regime == "private" else 0):
            raise ValueError(
                f"The set {self.name!r} is {self.regime} ({REGIMES[self.regime]}), and {with_passage} of its "
                f"{len(questions)} questions have a passage; expected "
                f"{'all' if self.regime == 'private' else 'none'}."
            )
        if self.tokens and tokenizer is not None:
            cut = [cut_to(question, self.tokens, tokenizer, template_kwargs) for question in questions]
            questions = [question for question in cut if question is not None]
        if len(questions) < 2:
            raise ValueError(f"The set {self.name!r} has {len(questions)} questions; expected at least 2.")
        return [questions[row] for row in spread_rows(len(questions), self.limit)], {"unusable": unusable}

    def methods(self, methods: list[str]) -> list[str]:
        """Those of `methods` that answer in the set's regime; the rival of drafts if there are any."""
        drafted = () if self.draft_tokens else ("text_to_text_draft",)
        return [
            name for name in methods if ONLY_IN.get(name, self.regime) == self.regime and name not in drafted
        ]


def cut_to(
    question: dict, tokens: int, tokenizer: PreTrainedTokenizerBase, template_kwargs: dict | None = None
) -> dict | None:
    """A "repeat" question with the first `tokens` tokens as its text; None if these spell no such text."""
    ids = tokens_of(question["answers"][0], question, tokenizer, template_kwargs)[:tokens]
    # Some tokenizers begin every text with a space.
    text = tokenizer.decode(ids, skip_special_tokens=True).strip()
    if len(ids) < tokens or tokens_of(text, question, tokenizer, template_kwargs) != ids:
        return None
    return {**question, "passage": text, "answers": [text], "choices": [text]}


def tokens_of(
    text: str, question: dict, tokenizer: PreTrainedTokenizerBase, template_kwargs: dict | None = None
) -> list[int]:
    """The Receiver's tokens of an answer, without its end."""
    return (
        answer_ids(tokenizer, user_turn(open_prompt(question)), text, False, template_kwargs) if text else []
    )


def set_report(
    of: QuestionSet,
    questions: list[dict],
    results: dict[str, dict],
    tokenizer: PreTrainedTokenizerBase,
    examples: int,
    template_kwargs: dict | None = None,
) -> dict:
    """The figures of one set.

    Args:
        results: the output of `h2c_hf.evaluation.runner.evaluate`.
        tokenizer: the Receiver's.
        examples: so many questions with every method's answer.

    Returns:
        `methods` (see `words_row`; with `token_accuracy`, the share of the first answer's tokens at their
        positions); `recovered`, `information_gain` and `pairing_gain` (matched minus shuffled) of the exact
        match, with `f1`; `follow_rate` (with another question's states, how often the answer is the donor's,
        and over H2C's accuracy); `comparisons`, each with a test of equivalence, of the exact match and, as
        `contained`, of the texts that hold an answer; `examples`.
    """
    found = {name: judged(result["predictions"], questions) for name, result in results.items()}
    report = {
        "regime": of.regime, "source": of.source.title, "draft_tokens": of.draft_tokens, "n": len(questions),
        "methods": {name: words_row(row) for name, row in found.items()},
    }  # fmt: skip
    for name, result in results.items():
        report["methods"][name] |= token_accuracy(
            result["predictions"], questions, tokenizer, of.tokens, template_kwargs
        )

    def tested(pair: tuple[np.ndarray, np.ndarray]) -> dict:
        return {**difference(*pair), "equivalence": equivalence(*pair)}

    def against(first: str, second: str) -> dict:
        pairs = {name: (found[first][name], found[second][name]) for name in ("exact", "contained", "f1")}
        return {
            **tested(pairs["exact"]),
            "contained": tested(pairs["contained"]),
            "f1": mean_difference(*pairs["f1"]),
        }

    correct = {name: row["exact"] for name, row in found.items()}
    report["recovered"] = recovered(correct["h2c"], correct["receiver"], correct["sharer"])
    control = max((name for name in CONTROLS if name in correct), key=lambda name: correct[name].mean())
    report["information_gain"] = {**against("h2c", control), "control": control}
    if "shuffled" in results:
        report["pairing_gain"] = against("h2c", "shuffled")
        report["follow_rate"] = follow_rate(results["shuffled"], questions, correct["h2c"])
    pairs = [("h2c", name) for name in found if name != "h2c"]
    # What a wrong message does to what the Receiver knows itself.
    if of.regime == "shared" and "shuffled" in found:
        pairs.append(("shuffled", "receiver"))
    report["comparisons"] = [
        {"first": first, "second": second, **against(first, second)} for first, second in pairs
    ]
    report["examples"] = [
        {
            "question": questions[row]["question"],
            **({"passage": questions[row]["passage"]} if "passage" in questions[row] else {}),
            "expected": questions[row]["answers"],
            "answers": {name: result["predictions"][row] for name, result in results.items()},
        }
        for row in spread_rows(len(questions), examples)
    ]
    return report


def follow_rate(shuffled: dict, questions: list[dict], h2c: np.ndarray) -> dict:
    """How often the answer with another question's states is that question's; and over H2C's accuracy."""
    donors = [questions[row] for row in shuffled["donors"]]
    row = accuracy_row(
        np.array(
            [
                exact(text, donor["answers"])
                for text, donor in zip(shuffled["predictions"], donors, strict=True)
            ],
            bool,
        )
    )
    return {
        "value": row["accuracy"], "low": row["accuracy_low"], "high": row["accuracy_high"], "n": row["n"],
        "over_h2c": row["accuracy"] / h2c.mean() if h2c.any() else None,
    }  # fmt: skip


def token_accuracy(
    texts: list[str],
    questions: list[dict],
    tokenizer: PreTrainedTokenizerBase,
    positions: int | None,
    template_kwargs: dict | None = None,
) -> dict:
    """`token_accuracy`: the share of all tokens of the first answers that the texts have at the same
    position; with `positions`, also `token_accuracy_by_position`, a list."""
    right = []
    for text, question in zip(texts, questions, strict=True):
        written, target = (
            tokens_of(words, question, tokenizer, template_kwargs) for words in (text, question["answers"][0])
        )
        written = written + [None] * (len(target) - len(written))
        right.append([a == b for a, b in zip(written, target, strict=False)])
    found = {"token_accuracy": sum(map(sum, right)) / sum(map(len, right))}
    if positions:
        found["token_accuracy_by_position"] = np.array(right, float).mean(0).tolist()
    return found
