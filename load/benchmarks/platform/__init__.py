"""Benchmarks of the platform as a whole: capacity, the counter beside trainings, functions, the registry, memory and the first hour."""
