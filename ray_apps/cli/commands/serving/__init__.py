"""Commands for what answers: traffic, rollouts, predictions, monitors, traces, load and capacity."""
