"""Experiments and baselines."""
