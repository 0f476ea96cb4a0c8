"""Soak: mixed load for an hour while versions change, models are retrained, processes are killed and a disk fills up."""
