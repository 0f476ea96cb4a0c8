"""Monitors of served models: realised loss, drift, data quality and operations, watched by scheduled functions.

Knows logged predictions, labels and statistics. Must not know how models are trained, rolled out or served.
"""

from toque.functions.monitoring.alarms import TOPIC, Alarm, Alarms
from toque.functions.monitoring.budget import AlarmBudget, call_false_alarm, false_alarm_budget
from toque.functions.monitoring.diagnosis import (
    ChangeFindings,
    SliceFindings,
    SliceOptions,
)
from toque.functions.monitoring.drift.answers import AnswerMonitor
from toque.functions.monitoring.drift.monitor import DriftMonitor
from toque.functions.monitoring.drift.reference import reference_of_dataset, sketch_dataset
from toque.functions.monitoring.estimate_monitor import EstimateMonitor
from toque.functions.monitoring.history import (
    AlarmEntry,
    Finding,
    PerformanceEstimate,
    alarm_history,
    monitor_findings,
    open_alarms,
    performance_estimates,
)
from toque.functions.monitoring.jobs import (
    estimate_performance,
    monitor_status,
    running_figures,
    standing_alarms,
    unknown_labels,
    watch_answers,
    watch_drift,
    watch_embeddings,
    watch_operations,
    watch_performance,
    watch_quality,
    watch_skew,
    what_changed,
    worst_slices,
)
from toque.functions.monitoring.operations import OperationsMonitor
from toque.functions.monitoring.performance import PerformanceMonitor
from toque.functions.monitoring.quality.monitor import QualityMonitor
from toque.functions.monitoring.results import MonitorStatus, RunningFigures, results_table
from toque.functions.monitoring.skew import SkewMonitor
from toque.functions.monitoring.vectors import VectorMonitor
from toque.functions.monitoring.watch import MonitorResult, alarms

__all__ = [
    "TOPIC",
    "Alarm",
    "AlarmBudget",
    "AlarmEntry",
    "Alarms",
    "AnswerMonitor",
    "ChangeFindings",
    "DriftMonitor",
    "EstimateMonitor",
    "Finding",
    "MonitorResult",
    "MonitorStatus",
    "OperationsMonitor",
    "PerformanceEstimate",
    "PerformanceMonitor",
    "QualityMonitor",
    "RunningFigures",
    "SkewMonitor",
    "SliceFindings",
    "SliceOptions",
    "VectorMonitor",
    "alarm_history",
    "alarms",
    "call_false_alarm",
    "estimate_performance",
    "false_alarm_budget",
    "monitor_findings",
    "monitor_status",
    "open_alarms",
    "performance_estimates",
    "reference_of_dataset",
    "results_table",
    "running_figures",
    "sketch_dataset",
    "standing_alarms",
    "unknown_labels",
    "watch_answers",
    "watch_drift",
    "watch_embeddings",
    "watch_operations",
    "watch_performance",
    "watch_quality",
    "watch_skew",
    "what_changed",
    "worst_slices",
]
