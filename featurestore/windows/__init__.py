"""Trailing-window aggregates of events, as rows of a feature view."""
