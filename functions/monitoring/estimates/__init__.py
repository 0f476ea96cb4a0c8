"""Estimates of performance before labels arrive, compared with the truth once they do."""
