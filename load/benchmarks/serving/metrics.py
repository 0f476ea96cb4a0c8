"""Benchmark of Prometheus's series: a predictor that counts its requests and one that does not, in turns, both with the log.

As `toque.load.benchmarks.serving.prediction_log` measures.
"""

from __future__ import annotations

from toque.load.benchmarks.harness import main
from toque.load.benchmarks.serving.prediction_log import Variant, compare_starts


def run(
    *, starts: int = 6, rounds: int = 4, seconds: float = 1, connections: tuple[int, ...] = (1, 16, 64)
) -> None:
    """Measure the predictors and print the result."""
    variants = (Variant("uncounted", ("--no-metrics",)), Variant("counted"))
    compare_starts(variants, starts, rounds, seconds, connections)


if __name__ == "__main__":
    main(run, "torch")
