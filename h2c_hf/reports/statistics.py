"""Intervals, tests and sample sizes, by scipy and statsmodels. All at 95 %, two-sided."""

import warnings

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.power import normal_sample_size_one_tail
from statsmodels.stats.weightstats import DescrStatsW


CONFIDENCE, POWER = 0.95, 0.8
RESAMPLES = 2000
MARGIN = 0.02  # differences within it count as none in a test of equivalence


def accuracy_interval(correct: np.ndarray) -> tuple[float, float, float]:
    """(accuracy, low, high) of a boolean array, by Wilson's interval."""
    test = stats.binomtest(int(np.sum(correct)), len(correct))
    interval = test.proportion_ci(CONFIDENCE, method="wilson")
    return float(test.statistic), float(interval.low), float(interval.high)


def accuracy_row(correct: np.ndarray) -> dict[str, float | int]:
    accuracy, low, high = accuracy_interval(correct)
    return {"accuracy": accuracy, "accuracy_low": low, "accuracy_high": high, "n": len(correct)}


def macro_accuracy(correct: np.ndarray, subjects: list[str]) -> float:
    """The mean over subjects of each subject's accuracy; the micro mean is the accuracy itself."""
    subjects, correct = np.array(subjects), np.asarray(correct, float)
    return float(np.mean([correct[subjects == subject].mean() for subject in np.unique(subjects)]))


def perplexity_row(nll: list[float], tokens: list[int]) -> dict[str, float | int]:
    """exp(nats a token), with a bootstrap interval over examples.

    Args:
        nll, tokens: of each example, summed over its tokens.
    """
    row = _paired(lambda nll, tokens, axis=-1: np.exp(nll.sum(axis) / tokens.sum(axis)), nll, tokens)
    return {
        "perplexity": row["value"],
        "low": row["low"],
        "high": row["high"],
        "n": len(nll),
        "tokens": int(np.sum(tokens)),
    }


def mean_row(values: np.ndarray) -> dict[str, float | None]:
    """The mean over questions with a bootstrap interval."""
    return _paired(lambda values, axis=-1: values.mean(axis), values)


def recovered(h2c: np.ndarray, receiver: np.ndarray, sharer: np.ndarray) -> dict[str, float | str | None]:
    """The share of the Sharer's lead over the Receiver that H2C recovers, with a bootstrap interval.

    It is defined only if the Sharer leads significantly: the paired interval of its lead lies above zero.
    Otherwise `value` is None and `reason` tells the lead.

    Args:
        h2c, receiver, sharer: boolean (or means over seeds), one entry a question, the same questions in the
            same order.
    """
    lead = mean_difference(sharer, receiver)
    if not lead["low"] > 0:
        told = (
            f"{100 * lead['value']:.1f} points, "
            f"95 % interval {100 * lead['low']:.1f} to {100 * lead['high']:.1f}"
        )
        return {
            "value": None,
            "low": None,
            "high": None,
            "reason": f"the Sharer does not lead the Receiver significantly ({told})",
        }

    def statistic(h2c, receiver, sharer, axis=-1):
        lead = sharer.mean(axis) - receiver.mean(axis)
        return (h2c.mean(axis) - receiver.mean(axis)) / lead

    return _paired(statistic, h2c, receiver, sharer)


def equivalence(first: np.ndarray, second: np.ndarray, margin: float = MARGIN) -> dict[str, float | bool]:
    """Whether mean(first) - mean(second) lies within +- margin: two one-sided paired t-tests (TOST).

    `p` is the larger of both; `equivalent` is p < 0.05. A difference that is not significant is no evidence
    of none; this is. Pairs without a single difference have no spread for a t-test. Then p is
    (1 - margin) ** n: if more than the margin of all pairs differed, n pairs would be equal at most so often.
    """
    differences = np.asarray(first, float) - np.asarray(second, float)
    if np.ptp(differences) == 0:
        p = (1 - margin) ** len(differences) if differences[0] == 0 else 1.0
    else:
        p = float(DescrStatsW(differences).ttost_mean(-margin, margin)[0])
    return {"margin": margin, "p": p, "equivalent": p < 1 - CONFIDENCE}


def difference(first: np.ndarray, second: np.ndarray) -> dict[str, float | int | None]:
    """accuracy(first) - accuracy(second) over the same questions, with a bootstrap interval; `p` is McNemar's
    exact test, and `questions_needed` see there."""
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    p = float(mcnemar(discordance(first, second), exact=True).pvalue)
    needed = questions_needed(first, second) if p >= 1 - CONFIDENCE else None
    return {**mean_difference(first, second), "p": p, "questions_needed": needed}


def mean_difference(first: np.ndarray, second: np.ndarray) -> dict[str, float | None]:
    """mean(first) - mean(second) over the same questions (or means over seeds), with a bootstrap interval."""
    return _paired(lambda a, b, axis=-1: a.mean(axis) - b.mean(axis), first, second)


def discordance(first: np.ndarray, second: np.ndarray) -> list[list[int]]:
    """Counts of questions: [[both right, the first alone], [the second alone, neither]]."""
    return [
        [int((first & second).sum()), int((first & ~second).sum())],
        [int((second & ~first).sum()), int((~first & ~second).sum())],
    ]


def questions_needed(first: np.ndarray, second: np.ndarray) -> int | None:
    """How many questions McNemar's test would need to find the observed difference, at the observed
    discordance, in 80 % of tries (R. J. Connor, Biometrics 43, 1987); None if the methods do not differ at
    all."""
    (_, only_first), (only_second, _) = discordance(first, second)
    share, lead = (only_first + only_second) / len(first), abs(only_first - only_second) / len(first)
    if not lead:
        return None
    spread, spread_alternative = share**0.5, max(share - lead**2, 0) ** 0.5
    return int(
        np.ceil(normal_sample_size_one_tail(lead, POWER, (1 - CONFIDENCE) / 2, spread, spread_alternative))
    )


def _paired(statistic, *samples: np.ndarray) -> dict[str, float | None]:
    """Value and percentile bootstrap interval of a statistic of paired samples; None if undefined."""
    samples = [np.asarray(sample, float) for sample in samples]
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        value = statistic(*samples)
        if not np.isfinite(value):
            return {"value": None, "low": None, "high": None}
        # In batches: all resamples at once would hold RESAMPLES x questions floats a sample.
        interval = stats.bootstrap(
            samples, statistic, paired=True, vectorized=True, n_resamples=RESAMPLES, batch=200,
            confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
    bounds = [float(bound) if np.isfinite(bound) else None for bound in interval]
    return {"value": float(value), "low": bounds[0], "high": bounds[1]}
