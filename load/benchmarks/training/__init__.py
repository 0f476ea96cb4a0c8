"""Benchmarks of training: speed, memory, workers, checkpoints, sweeps, plans, the GPU queue and kernels."""
