"""Retraining: an alarm becomes challengers under a policy, and the best of them a rollout."""
