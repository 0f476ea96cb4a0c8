"""Reports on a model, each one HTML page: losses by week, alarms and decisions, latencies, versions, lineage.

Reads the prediction log and the journals; decides nothing. The page is one HTML file without external resources.
"""

from functions.reporting.evidently_page import EvidentlyReport, evidently_report
from functions.reporting.jobs import AlarmReport, Report, alarm_report, model_report, rollout_report
from functions.reporting.timeline import Happening, timeline
from functions.reporting.trace import PredictionTrace, trace_prediction
from functions.reporting.weekly import Week, weeks

__all__ = [
    "AlarmReport",
    "EvidentlyReport",
    "Happening",
    "PredictionTrace",
    "Report",
    "Week",
    "alarm_report",
    "evidently_report",
    "model_report",
    "rollout_report",
    "timeline",
    "trace_prediction",
    "weeks",
]
