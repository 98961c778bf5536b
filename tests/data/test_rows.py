"""`spread_rows`: at most so many rows, from all over them."""

import numpy as np
import pytest

from h2c_hf.data.rows import spread_rows


@pytest.mark.parametrize("count", [1, 2, 7, 450, 1341])
@pytest.mark.parametrize("limit", [None, 1, 2, 5, 449, 2000])
def test_rows_are_distinct_in_order_and_evenly_spaced(count, limit):
    rows = spread_rows(count, limit)
    assert len(rows) == min(count, limit or count) and rows == sorted(set(rows)) and rows[0] == 0
    if len(rows) > 1:
        steps = np.diff(rows)
        assert rows[-1] == count - 1 and steps.max() - steps.min() <= 1


def test_none_of_none():
    assert spread_rows(0, None) == spread_rows(0, 3) == spread_rows(3, 0) == []
