"""Durable invocations, which are recorded in a journal, executed under a lease, retried, resumed and queried."""
