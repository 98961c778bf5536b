import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import ttost_paired

from h2c_hf.reports.statistics import (
    accuracy_interval,
    difference,
    equivalence,
    macro_accuracy,
    mean_row,
    perplexity_row,
    questions_needed,
    recovered,
)


@pytest.mark.parametrize(("right", "n"), [(0, 10), (7, 10), (250, 1000), (1000, 1000)])
def test_wilson_interval_is_the_textbook_formula(right, n):
    accuracy, low, high = accuracy_interval(np.arange(n) < right)
    z, p = 1.959963984540054, right / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert accuracy == p
    assert (low, high) == pytest.approx((max(0, center - half), min(1, center + half)), abs=1e-9)


def answers(accuracy: float, n: int = 2000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < accuracy


def test_recovered_is_the_share_of_the_lead_and_its_interval_holds_the_truth():
    receiver, sharer, h2c = answers(0.25, seed=1), answers(0.95, seed=2), answers(0.81, seed=3)
    share = recovered(h2c, receiver, sharer)
    assert share["value"] == pytest.approx((h2c.mean() - receiver.mean()) / (sharer.mean() - receiver.mean()))
    assert share["low"] < 0.8 < share["high"]
    assert 0.01 < share["high"] - share["low"] < 0.1


def test_recovered_is_not_defined_without_a_lead():
    same = answers(0.5)
    found = recovered(same, same, same)
    assert {found[name] for name in ("value", "low", "high")} == {None}
    assert (
        found["reason"]
        == "the Sharer does not lead the Receiver significantly (0.0 points, 95 % interval 0.0 to 0.0)"
    )


@pytest.mark.parametrize(("h2c", "receiver", "sharer"), [(0.0, 0.43, 0.0), (0.9, 0.5, 0.51)])
def test_recovered_is_not_defined_by_a_lead_that_may_be_chance(h2c, receiver, sharer):
    found = recovered(answers(h2c, 200, 1), answers(receiver, 200, 2), answers(sharer, 200, 3))
    assert found["value"] is None and "does not lead" in found["reason"]


def test_equivalence_is_two_one_sided_t_tests():
    """By statsmodels' own function for pairs, and by two t-tests of scipy."""
    rng = np.random.default_rng(0)
    for n, share in ((100, 0.3), (1000, 0.1), (5000, 0.05)):
        second = rng.random(n) < 0.5
        first = np.where(rng.random(n) < share, rng.random(n) < 0.5, second)
        found = equivalence(first, second)
        expected, *_ = ttost_paired(first.astype(float), second.astype(float), -0.02, 0.02)
        differences = first.astype(float) - second
        sides = [
            stats.ttest_1samp(differences, at, alternative=side).pvalue
            for at, side in ((-0.02, "greater"), (0.02, "less"))
        ]
        assert found["p"] == pytest.approx(expected) and found["p"] == pytest.approx(max(sides))
        assert found["equivalent"] == (found["p"] < 0.05) and found["margin"] == 0.02
    assert found["equivalent"]  # with 5,000 questions


def test_equivalence_of_answers_that_never_differ_or_always():
    some = answers(0.5, 20)
    few, many = equivalence(some, some), equivalence(np.tile(some, 10), np.tile(some, 10))
    assert few["p"] == pytest.approx(stats.binom.pmf(0, 20, 0.02)) and not few["equivalent"]
    assert many["p"] == pytest.approx(stats.binom.pmf(0, 200, 0.02)) and many["equivalent"]
    assert equivalence(np.ones(20), np.zeros(20))["equivalent"] is False
    assert not equivalence(some, ~some)["equivalent"]


def test_a_mean_lies_in_its_bootstrap_interval():
    values = np.random.default_rng(0).beta(2, 5, 400)
    row = mean_row(values)
    error = values.std(ddof=1) / 20
    assert row["value"] == pytest.approx(values.mean())
    assert (row["low"], row["high"]) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.25 * error
    )


def test_a_difference_is_paired_over_questions():
    """One more right answer on each of 50 questions: certain if paired, lost in noise if independent."""
    second = answers(0.5, 1000)
    first = second.copy()
    first[np.flatnonzero(~second)[:50]] = True
    gain = difference(first, second)
    assert gain["value"] == pytest.approx(0.05)
    assert 0.03 < gain["low"] < 0.05 < gain["high"] < 0.07
    assert gain["p"] < 1e-9
    assert difference(second, second)["p"] == 1.0


def test_intervals_are_the_same_every_time():
    first, second = answers(0.6, seed=4), answers(0.5, seed=5)
    assert difference(first, second) == difference(first, second)


def test_mcnemar_is_the_binomial_test_of_the_discordant():
    first, second = answers(0.6, 300, seed=6), answers(0.5, 300, seed=7)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    assert difference(first, second)["p"] == pytest.approx(
        stats.binomtest(only_first, only_first + only_second).pvalue
    )


def test_so_many_questions_as_needed_find_the_difference_in_80_percent_of_tries():
    """By simulation: 15 % of questions only the first has right, 10 % only the second."""
    rng = np.random.default_rng(0)
    kinds = np.repeat([0, 1, 2], [15, 10, 75])
    needed = questions_needed(kinds == 0, kinds == 1)
    found = 0
    for _ in range(400):
        drawn = rng.choice(kinds, needed)
        found += stats.chi2.sf(((drawn == 0).sum() - (drawn == 1).sum()) ** 2 / (drawn < 2).sum(), 1) < 0.05
    assert found / 400 == pytest.approx(0.8, abs=0.06)
    assert questions_needed(kinds == 0, kinds == 0) is None


def test_macro_mean_gives_each_subject_the_same_weight():
    assert macro_accuracy(np.array([True, True, True, False]), ["a", "a", "a", "b"]) == 0.5


def test_perplexity_is_that_of_all_tokens():
    row = perplexity_row([2.0, 6.0, 1.0], [4, 2, 3])
    assert row["perplexity"] == pytest.approx(math.exp(9 / 9)) and row["tokens"] == 9 and row["n"] == 3
    assert row["low"] <= row["perplexity"] <= row["high"]
