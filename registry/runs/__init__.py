"""Experiments and their runs with parameters, metrics and artifacts, and a search over them."""

from registry.runs.experiments import Experiment
from registry.runs.record import Point, RunRecord, Segment
from registry.runs.remote_run import RunLog
from registry.runs.run import Run

__all__ = ["Experiment", "Point", "Run", "RunLog", "RunRecord", "Segment"]
