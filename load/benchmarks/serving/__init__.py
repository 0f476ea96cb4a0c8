"""Benchmarks of the model predictor: throughput, latency, log, pool, and changes of the traffic policy."""
