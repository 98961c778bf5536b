"""Intervals for accuracies and for the two headline figures, by scipy. All at 95 %."""

import warnings

import numpy as np
from scipy import stats


CONFIDENCE = 0.95
RESAMPLES = 2000


def accuracy_interval(correct: np.ndarray) -> tuple[float, float, float]:
    """(accuracy, low, high) of a boolean array, by Wilson's interval."""
    test = stats.binomtest(int(np.sum(correct)), len(correct))
    interval = test.proportion_ci(CONFIDENCE, method="wilson")
    return float(test.statistic), float(interval.low), float(interval.high)


def recovered(h2c: np.ndarray, receiver: np.ndarray, sharer: np.ndarray) -> dict[str, float | None]:
    """The share of the Sharer's lead over the Receiver that H2C recovers, with a bootstrap interval over questions.

    Args:
        h2c, receiver, sharer: boolean, one entry a question, the same questions in the same order.
    """

    def statistic(h2c, receiver, sharer, axis=-1):
        lead = sharer.mean(axis) - receiver.mean(axis)
        return (h2c.mean(axis) - receiver.mean(axis)) / lead

    return _paired(statistic, h2c, receiver, sharer)


def difference(first: np.ndarray, second: np.ndarray) -> dict[str, float | None]:
    """accuracy(first) - accuracy(second) over the same questions, with a bootstrap interval; `p` is McNemar's exact test."""
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    p = stats.binomtest(only_first, only_first + only_second).pvalue if only_first + only_second else 1.0
    return {**_paired(lambda a, b, axis=-1: a.mean(axis) - b.mean(axis), first, second), "p": float(p)}


def _paired(statistic, *samples: np.ndarray) -> dict[str, float | None]:
    """Value and percentile bootstrap interval of a statistic of paired samples; None where it is not defined (no lead)."""
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
