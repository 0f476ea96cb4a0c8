"""Metrics of predictions against labels: probabilities, classes, numbers, and calibration."""
