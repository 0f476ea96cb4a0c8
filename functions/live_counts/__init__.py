"""Counts of what a model's users got in the last minutes, by version and arm, fresh within two seconds.

Each process that predicts tallies its requests and sends the tally to Redis once a second; readers add the processes up.
Errors and requests without an answer count whether or not they have a logged row, as requests and by unit. Knows counts and Redis; must not know what
anybody decides by them.
"""

from toque.functions.live_counts.counts import (
    BINS,
    KEPT_S,
    WINDOW_S,
    ArmTally,
    Failures,
    SplitArm,
    WindowCounts,
    bin_of,
    lower_edge_ms,
    quantile_ms,
    slower,
    window_at,
)
from toque.functions.live_counts.figures import LiveFigures, LiveReader, figures, live_reader, read_figures
from toque.functions.live_counts.publisher import End, LivePublisher, Tally, end_of, is_usable, live_publisher

__all__ = [
    "BINS",
    "KEPT_S",
    "WINDOW_S",
    "ArmTally",
    "End",
    "Failures",
    "LiveFigures",
    "LivePublisher",
    "LiveReader",
    "SplitArm",
    "Tally",
    "WindowCounts",
    "bin_of",
    "end_of",
    "figures",
    "is_usable",
    "live_publisher",
    "live_reader",
    "lower_edge_ms",
    "quantile_ms",
    "read_figures",
    "slower",
    "window_at",
]
