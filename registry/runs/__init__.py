"""Experiments and their runs with parameters, metrics and artifacts, and a search over them."""

from toque.registry.runs.experiments import Experiment
from toque.registry.runs.record import Point, RunRecord, Segment
from toque.registry.runs.run import Run, RunLog

__all__ = ["Experiment", "Point", "Run", "RunLog", "RunRecord", "Segment"]
