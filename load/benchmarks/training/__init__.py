"""Benchmarks of training: speed, memory, workers, checkpoints, sweeps, plans, the GPU queue, kernels and the use of a card's peak."""
