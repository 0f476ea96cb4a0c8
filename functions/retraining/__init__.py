"""Retraining of models: an alarm leads, under a policy, to challengers, and the best of them to a rollout."""
