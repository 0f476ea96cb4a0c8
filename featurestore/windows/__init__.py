"""Trailing-window aggregates: which rows they have, and the values of each."""
