"""Baselines, metrics and comparisons of ways to make vectors small."""
