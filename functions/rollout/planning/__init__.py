"""Planning a rollout: how long it will take and what it can detect, simulated before it starts."""
