"""Upkeep as functions for a schedule: compact, expire and collect what nothing needs any more."""
