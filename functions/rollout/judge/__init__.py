"""Rules that judge a rollout: pure decisions over its evidence, each with its finding."""
