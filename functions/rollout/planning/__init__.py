"""Plans of rollouts: how long one will take and what it can detect, simulated before it starts."""
