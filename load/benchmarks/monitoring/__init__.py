"""Benchmarks of the monitors: false alarms, power, and cost at size."""
