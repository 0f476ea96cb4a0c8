"""Admission of experiments: one queue for all that declares a demand, its pure rule, and what the rule is told.

`rule` decides from values alone what starts, what is preempted and why the rest waits; `slots` and `preemption` do it to the
invocations of a ledger. It knows nothing of Ray: who calls it says which nodes there are.
"""
