"""Processes that train together: alone, with the whole model each, with a shard each, or with layers split, and which is slow."""
