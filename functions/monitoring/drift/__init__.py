"""Drift of model inputs against a reference, on sketches of tables that can be added up."""
