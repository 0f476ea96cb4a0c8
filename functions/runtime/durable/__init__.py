"""Durable invocations: recorded in a journal, executed under a lease, retried, resumed and queried."""
