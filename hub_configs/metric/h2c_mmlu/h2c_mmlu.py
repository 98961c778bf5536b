"""Accuracy on multiple-choice questions, with its interval: overall, by subject, by MMLU's categories."""

# One import a line: evaluate reads these lines to find what a metric needs.
import datasets
import evaluate
from scipy.stats import binomtest


DESCRIPTION = """\
Accuracy on multiple-choice questions with a 95 % Wilson interval: overall, by subject, by MMLU's four \
categories, and as the mean
over subjects.
"""

INPUTS = """
Args:
    predictions: letters "A" to "J", or indices 0 to 9.
    references: the right answers, in either form.
    subjects: optional, one a question, as MMLU names them ("abstract_algebra" ...); None for a question \
without one.
Returns:
    accuracy, accuracy_low, accuracy_high: fractions; the bounds of the 95 % Wilson interval.
    n: the number of questions.
    by_subject, by_category, macro_accuracy: with subjects; the same four values for each, and the mean of \
the subjects' accuracies.
Examples:
    >>> metric = evaluate.load("h2c_mmlu")
    >>> metric.compute(predictions=["A", "B"], references=[0, 2])["accuracy"]
    0.5
"""

CITATION = """\
@inproceedings{hendrycks2021measuring,
  title={Measuring Massive Multitask Language Understanding},
  author={Dan Hendrycks and Collin Burns and Steven Basart and Andy Zou and Mantas Mazeika and Dawn Song \
and Jacob Steinhardt},
  booktitle={International Conference on Learning Representations},
  year={2021}
}
"""

LETTERS = "ABCDEFGHIJ"
CONFIDENCE = 0.95
# As the authors' own evaluation has them: anatomy is of health, in "other" (lm-eval has it in STEM).
CATEGORIES = {
    "STEM": (
        "abstract_algebra", "astronomy", "college_biology", "college_chemistry", "college_computer_science",
        "college_mathematics", "college_physics", "computer_security", "conceptual_physics",
        "electrical_engineering", "elementary_mathematics", "high_school_biology", "high_school_chemistry",
        "high_school_computer_science", "high_school_mathematics", "high_school_physics",
        "high_school_statistics", "machine_learning",
    ),
    "humanities": (
        "formal_logic", "high_school_european_history", "high_school_us_history", "high_school_world_history",
        "international_law", "jurisprudence", "logical_fallacies", "moral_disputes", "moral_scenarios",
        "philosophy", "prehistory", "professional_law", "world_religions",
    ),
    "social sciences": (
        "econometrics", "high_school_geography", "high_school_government_and_politics",
        "high_school_macroeconomics", "high_school_microeconomics", "high_school_psychology",
        "human_sexuality", "professional_psychology", "public_relations", "security_studies", "sociology",
        "us_foreign_policy",
    ),
    "other": (
        "anatomy", "business_ethics", "clinical_knowledge", "college_medicine", "global_facts", "human_aging",
        "management", "marketing", "medical_genetics", "miscellaneous", "nutrition",
        "professional_accounting", "professional_medicine", "virology",
    ),
}  # fmt: skip


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class H2CMMLU(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            # One format, whichever form the answers have: processes write files that are read as one.
            features=datasets.Features({"predictions": text, "references": text, "subjects": text}),
            reference_urls=["https://arxiv.org/abs/2009.03300"],
        )

    def compute(self, *, predictions=None, references=None, subjects=None, **kwargs):
        """Compute the metric of these answers, or of those that were added."""
        return super().compute(predictions=predictions, references=references, subjects=subjects, **kwargs)

    def add_batch(self, *, predictions=None, references=None, subjects=None, **kwargs):
        """Add a batch of answers."""
        given = {"predictions": predictions, "references": references, "subjects": subjects}
        columns = {name: None if values is None else plain_list(values) for name, values in given.items()}
        for name in ("predictions", "references"):
            if columns[name] is None:
                raise ValueError(f"{name} are missing; expected as many predictions as references.")
            columns[name] = [str(answer_index(value, name[:-1])) for value in columns[name]]
        if columns["subjects"] is None:
            columns["subjects"] = [None] * len(columns["predictions"])
        # Arrow's first row decides the format, so that "" stands for None.
        columns["subjects"] = ["" if subject is None else str(subject) for subject in columns["subjects"]]
        super().add_batch(**columns, **kwargs)

    def add(self, *, prediction=None, reference=None, subjects=None, **kwargs):
        """Add one answer."""
        self.add_batch(predictions=[prediction], references=[reference], subjects=[subjects], **kwargs)

    def _compute(self, predictions, references, subjects):
        if not predictions:
            raise ValueError("There are no predictions: got 0, expected at least 1.")
        correct = [p == r for p, r in zip(predictions, references, strict=True)]
        result = interval(correct)
        if any(subjects):
            subjects = [subject or None for subject in subjects]
            result["by_subject"] = grouped(correct, subjects)
            category = {subject: name for name, members in CATEGORIES.items() for subject in members}
            result["by_category"] = grouped(correct, [category.get(subject) for subject in subjects])
            accuracies = [row["accuracy"] for row in result["by_subject"].values()]
            result["macro_accuracy"] = sum(accuracies) / len(accuracies)
        return result


def plain_list(values):
    """Arrays and tensors as lists of Python's own numbers."""
    return [value.item() if hasattr(value, "item") else value for value in values]


def answer_index(answer, what):
    """The index of an answer: 0 to 9."""
    text = str(int(answer) if isinstance(answer, float) and answer.is_integer() else answer).strip()
    if len(text) == 1 and text in LETTERS:
        return LETTERS.index(text)
    if len(text) == 1 and text in "0123456789":
        return int(text)
    raise ValueError(f"A {what} is {answer!r}; expected a letter, A to J, or an index, 0 to 9.")


def interval(correct):
    """Accuracy and the bounds of its Wilson interval."""
    test = binomtest(sum(correct), len(correct))
    bounds = test.proportion_ci(CONFIDENCE, method="wilson")
    return {
        "accuracy": float(test.statistic),
        "accuracy_low": float(bounds.low),
        "accuracy_high": float(bounds.high),
        "n": len(correct),
    }


def grouped(correct, names):
    """{name: accuracy and its interval}; None is no name."""
    rows = {}
    for name, value in zip(names, correct, strict=True):
        if name is not None:
            rows.setdefault(name, []).append(value)
    return {name: interval(rows[name]) for name in sorted(rows)}
