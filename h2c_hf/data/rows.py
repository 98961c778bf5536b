"""Fewer rows that stand for all."""

import numpy as np


def spread_rows(count: int, limit: int | None) -> list[int]:
    """Indices of at most `limit` of `count` rows, evenly spaced: rows that are alike stand together."""
    limit = count if limit is None else min(limit, count)
    return np.linspace(0, count - 1, limit, dtype=int).tolist()
