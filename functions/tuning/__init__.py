"""Sweeps: many trials under one search, stopped early by ASHA or continued by population based training."""
