"""Monitors: realised loss and drift of what is served, watched by scheduled functions.

Knows logged predictions, labels and statistics. Must not know how models are trained, rolled out or served.
"""
