"""Reports on a model, each one HTML page: losses by week, alarms and decisions, latencies, versions, lineage.

Reads the prediction log and the journals; decides nothing. The page is one HTML file without external resources.
"""

from typing import TYPE_CHECKING

from functions.renamed import old_names
from functions.reporting.evidently_page import EvidentlyReport, evidently_report
from functions.reporting.explained_request import PredictionExplanation, explain_prediction
from functions.reporting.jobs import AlarmReport, Report, alarm_report, model_report, rollout_report
from functions.reporting.logged_requests import (
    FeatureTime,
    LoggedPrediction,
    PredictionInputs,
    list_predictions,
    prediction_feature_times,
    prediction_inputs,
)
from functions.reporting.rollout_record import RolloutRecord, rollout_record
from functions.reporting.timeline import TimelineEvent, timeline
from functions.reporting.trace import PredictionTrace, trace_prediction
from functions.reporting.trace_by_id import RequestFound, find_request
from functions.reporting.weekly import Week, weeks

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
    "RolloutRecord",
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
    "rollout_record",
    "rollout_report",
    "timeline",
    "trace_prediction",
    "weeks",
]

if not TYPE_CHECKING:  # a type checker must not take every name as there
    __getattr__ = old_names(__name__, {"Happening": "TimelineEvent"})
