"""The training loop, alone or on several workers: steps, epochs, sharding, cost and interruption."""
