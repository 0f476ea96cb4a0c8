"""Evidence of a rollout: sums by arm and cohort, made from the prediction log."""
