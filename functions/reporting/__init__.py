"""Reports on a model, each one HTML page: losses by week, alarms and decisions, latencies, versions, lineage.

Reads the prediction log and the journals; decides nothing. The page is one HTML file without external resources.
"""

from toque.functions.reporting.evidently_page import EvidentlyReport, evidently_report
from toque.functions.reporting.explained_request import PredictionExplanation, explain_prediction
from toque.functions.reporting.jobs import AlarmReport, Report, alarm_report, model_report, rollout_report
from toque.functions.reporting.logged_requests import (
    FeatureTime,
    LoggedPrediction,
    PredictionInputs,
    list_predictions,
    prediction_feature_times,
    prediction_inputs,
)
from toque.functions.reporting.page import Week, weeks
from toque.functions.reporting.timeline import TimelineEvent, timeline
from toque.functions.reporting.trace import PredictionTrace, RequestFound, find_request, trace_prediction

__all__ = [
    "AlarmReport",
    "EvidentlyReport",
    "FeatureTime",
    "LoggedPrediction",
    "PredictionExplanation",
    "PredictionInputs",
    "PredictionTrace",
    "Report",
    "RequestFound",
    "TimelineEvent",
    "Week",
    "alarm_report",
    "evidently_report",
    "explain_prediction",
    "find_request",
    "list_predictions",
    "model_report",
    "prediction_feature_times",
    "prediction_inputs",
    "rollout_report",
    "timeline",
    "trace_prediction",
    "weeks",
]
