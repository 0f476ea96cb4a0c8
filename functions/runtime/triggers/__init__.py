"""Triggers that start functions without a caller: schedules, published events, and waiting workflows."""
