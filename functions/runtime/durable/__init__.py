"""Durable invocations: they are recorded in journals, executed under leases, retried and resumed."""
