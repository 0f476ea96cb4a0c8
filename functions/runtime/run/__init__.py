"""Where a function's body runs: in this process, a forked child, a warm worker, or a task on Ray."""
