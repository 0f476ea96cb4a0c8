"""Logs of a process: one JSON line for each event when asked for, a line for people otherwise, credentials masked.

Every line carries the trace and the request that it belongs to, wherever in the process it was written.
"""

from toque.clusters.telemetry.logs.access import AccessLog
from toque.clusters.telemetry.logs.lines import HumanLines, JsonLines, set_up_logs
from toque.clusters.telemetry.logs.redaction import Mask, redact
from toque.clusters.telemetry.logs.settings import LogSettings

__all__ = ["AccessLog", "HumanLines", "JsonLines", "LogSettings", "Mask", "redact", "set_up_logs"]
