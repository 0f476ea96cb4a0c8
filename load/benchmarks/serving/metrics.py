"""Benchmark of Prometheus's series: a predictor that counts its requests and one that does not, in turns.

python -m toque.load.benchmarks.serving.metrics [--traces 0.01] [--starts 6] [--rounds 4] [--seconds 1]

As `toque.load.benchmarks.serving.prediction_log` measures, both with the log. With --traces a third one also keeps a share of the
requests' traces and sends them to a collector in this process: what both cost together.
"""

from __future__ import annotations

from toque.load.benchmarks.serving.prediction_log import Variant, argument_parser, compare
from toque.load.benchmarks.serving.traces import collector
from toque.load.benchmarks.timing import print_machine


def main() -> None:
    """Measure the predictors and print the result."""
    parser = argument_parser(__doc__)
    parser.add_argument("--traces", type=float, metavar="SHARE", help="of the requests whose traces are kept")
    arguments = parser.parse_args()
    print_machine("torch")
    variants: list[Variant] = [("uncounted", ["--no-metrics"], {}), ("counted", [], {})]
    with collector() as (url, _):
        if arguments.traces is not None:
            own = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "TOQUE_TRACE_SHARE": str(arguments.traces)}
            variants.append(("and traced", [], own))
        compare(arguments, variants)


if __name__ == "__main__":
    main()
