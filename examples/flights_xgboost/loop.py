"""Five weeks of the model of late flights in one process: `python -m examples.flights_xgboost.loop`."""

from __future__ import annotations

from examples.flights_xgboost.data import take_offs
from examples.flights_xgboost.model import late_flights
from examples.loop import play
from toque.functions.tuning import Choice, Space

SPACE: Space = {"max_depth": Choice(choices=[1, 3])}

if __name__ == "__main__":
    play("examples.flights_xgboost", late_flights, take_offs, SPACE)
