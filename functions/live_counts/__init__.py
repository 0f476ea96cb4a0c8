"""Counts of what a model's users got in the last minutes, by version and arm, fresh within two seconds.

Each process that predicts tallies its requests and sends the tally to Redis once a second; readers add the processes up.
Errors and requests without an answer count whether or not they have a logged row, as requests and by unit. Knows counts and Redis; must not know what
anybody decides by them.
"""

from toque.functions.live_counts.counts import ArmTally, Failures, SplitArm, WindowCounts
from toque.functions.live_counts.figures import LiveFigures, figures, read_figures
from toque.functions.live_counts.latency_bins import BINS, bin_of, lower_edge_ms, quantile_ms, slower
from toque.functions.live_counts.publisher import LivePublisher, live_publisher
from toque.functions.live_counts.reader import LiveReader, live_reader
from toque.functions.live_counts.tally import End, Tally, end_of, is_usable
from toque.functions.live_counts.windows import KEPT_S, WINDOW_S, window_at

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
