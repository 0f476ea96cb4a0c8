"""Sweeps of small networks whose trials train stacked: many in one process, as one network whose weights have an axis of trials.

The package knows the tabular network and ASHA. It must not know what a sweep is for. It names nothing of its modules here, since its
workers import them without Ray Tune.
"""
