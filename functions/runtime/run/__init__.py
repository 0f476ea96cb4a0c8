"""Runs of functions: in this process, in a forked child, in a warm worker, or as a task on Ray."""
