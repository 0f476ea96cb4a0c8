"""Benchmarks of the monitors: false alarms, power, and cost on large data."""
