"""Monitors: realised loss and drift of what is served, watched by scheduled functions.

Knows logged predictions, labels and statistics. Must not know how models are trained, rolled out or served.
"""

from functions.monitoring.alarms import TOPIC, Alarm, Alarms
from functions.monitoring.drift import DriftMonitor
from functions.monitoring.jobs import alarms, standing_alarms, watch_drift, watch_performance
from functions.monitoring.performance import PerformanceMonitor
from functions.monitoring.results import results_table
from functions.monitoring.watch import Watched

__all__ = [
    "TOPIC",
    "Alarm",
    "Alarms",
    "DriftMonitor",
    "PerformanceMonitor",
    "Watched",
    "alarms",
    "results_table",
    "standing_alarms",
    "watch_drift",
    "watch_performance",
]
