"""Five weeks of the ranking of flights in one process: `python -m examples.ranking.loop`."""

from __future__ import annotations

from examples.loop import play
from examples.ranking.data import requests
from examples.ranking.model import flight_order
from toque.functions.tuning import Choice, Space

SPACE: Space = {"max_depth": Choice(choices=[2, 4])}

if __name__ == "__main__":
    play("examples.ranking", flight_order, requests, SPACE)
