"""Benchmarks of the predictor: throughput, latency, log, pool, and changes of the traffic policy."""
