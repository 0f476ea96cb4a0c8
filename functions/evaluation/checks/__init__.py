"""Rules of a gate beside its metrics: slices, fairness, robustness and required behaviour."""
