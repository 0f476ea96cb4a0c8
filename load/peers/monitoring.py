"""Measurement of one monitoring tool on the data sets of the comparison, as JSON: `python -m toque.load.peers.monitoring ours|evidently|nannyml large|RUNS`.

Run by the interpreter that has the tool; each tool as it is by default. `load/benchmarks/monitoring/bounds.py` prints them side by side.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

COLUMNS, SHIFT_SD = 20, 0.2
PAIRS = ((5_000, 100), (5_000, 500), (5_000, 5_000))
QUIET, CHANGED, CHUNK, FEW = 10_000, 3_000, 500, 600
BIG = 1_000_000
_MIB = 1024.0  # ru_maxrss is in KiB


class Tool(Protocol):
    """Monitoring tool that is compared."""

    def keep(self, reference: Floats) -> object:
        """Prepare what the tool can compute once from the reference (rows, columns)."""
        ...

    def drifted(self, kept: Any, window: Floats) -> set[int]:
        """Return the columns of the window that the tool calls drifted."""
        ...

    def risen(self, reference: Floats, stream: Floats) -> list[int]:
        """Return the labels seen at each alarm about a stream of errors (0 or 1); reference: errors of before."""
        ...


class OurMonitors:
    """Tests of our monitors, on sketches, and CUSUM over single labels."""

    def __init__(self) -> None:
        """Import our packages late, since the peers' interpreters lack them."""
        import pyarrow as pa

        from toque.functions.stats import Cusum, Moments, TableSketch, drift

        self._table: Any = lambda rows: pa.table({f"c{place}": column for place, column in enumerate(rows.T)})
        self._stats: Any = (Cusum, Moments, TableSketch, drift)

    def keep(self, reference: Floats) -> object:
        """Sketch the reference rows in bins."""
        return self._stats[2].reference(self._table(reference))

    def drifted(self, kept: Any, window: Floats) -> set[int]:
        """Find drifted columns by `compare`, at its floors."""
        report = self._stats[3].compare(kept, kept.window(self._table(window)))
        return {int(name[1:]) for name in report.drifted}

    def risen(self, reference: Floats, stream: Floats) -> list[int]:
        """Find rises of the errors by CUSUM."""
        cusum, moments = self._stats[:2]
        return list(cusum.tuned(moments.of(reference)).update(stream).alarms)


class Evidently:
    """Evidently's `DataDriftPreset`; for errors, `ValueDrift` of each chunk of 500 against those of before."""

    def __init__(self) -> None:
        """Import the peer late, in its own interpreter."""
        self._pandas, self._evidently = import_module("pandas"), import_module("evidently")
        self._preset: Any = import_module("evidently.presets").DataDriftPreset
        self._one: Any = import_module("evidently.metrics").ValueDrift

    def keep(self, reference: Floats) -> object:
        """Keep the rows, since evidently compares rows with rows."""
        return self._frame(reference)

    def drifted(self, kept: Any, window: Floats) -> set[int]:
        """Find columns beyond the threshold of the method that evidently chose."""
        metrics = self._run(self._preset(), self._frame(window), kept)["metrics"]
        return {int(one["config"]["column"][1:]) for one in metrics if _beyond(one)}

    def risen(self, reference: Floats, stream: Floats) -> list[int]:
        """Find chunks whose errors are not distributed as before."""
        before, found = self._pandas.DataFrame({"error": reference.astype(int)}), []
        for end in range(CHUNK, len(stream) + 1, CHUNK):
            now = self._pandas.DataFrame({"error": stream[end - CHUNK : end].astype(int)})
            (metric,) = self._run(self._one(column="error"), now, before)["metrics"]
            found += [end] if _beyond(metric) else []
        return found

    def _run(self, metric: object, now: Any, before: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._evidently.Report([metric]).run(now, before).dict()
        return found

    def _frame(self, rows: Floats) -> Any:
        return self._pandas.DataFrame(rows, columns=[f"c{place}" for place in range(rows.shape[1])])


def _beyond(metric: dict[str, Any]) -> bool:
    """Whether a `ValueDrift` is drift: a p-value below its threshold, or a distance above it."""
    config = metric["config"]
    if not config["type"].endswith("ValueDrift"):
        return False
    method = metric["metric_name"]
    threshold = float(method.rsplit("threshold=", 1)[1].rstrip(")"))
    value = float(metric["value"])
    return value < threshold if "p_value" in method else value >= threshold


class NannyMl:
    """NannyML's `UnivariateDriftCalculator`, the window as one chunk; `PerformanceCalculator` of accuracy by chunks of 500."""

    def __init__(self) -> None:
        """Import the peer late, in its own interpreter."""
        self._nannyml, self._pandas = import_module("nannyml"), import_module("pandas")

    def keep(self, reference: Floats) -> object:
        """Keep the rows, since the calculator is fitted for the size of the chunk."""
        return self._frame(reference)

    def drifted(self, kept: Any, window: Floats) -> set[int]:
        """Find the columns that raise an alert."""
        calculator = self._nannyml.UnivariateDriftCalculator(
            column_names=list(kept.columns), chunk_size=min(len(window), len(kept) // 10)
        )
        result = calculator.fit(kept).calculate(self._frame(window)).filter(period="analysis").to_df()
        alerts = result.xs("alert", axis=1, level=-1).any()
        return {int(name[0][1:]) for name, alert in alerts.items() if alert}

    def risen(self, reference: Floats, stream: Floats) -> list[int]:
        """Find the chunks whose accuracy raises an alert."""
        calculator = self._nannyml.PerformanceCalculator(
            problem_type="classification_binary",
            y_true="truth",
            y_pred="answer",
            y_pred_proba="probability",
            metrics=["accuracy"],
            chunk_size=CHUNK,
        )
        result = calculator.fit(self._answers(reference)).calculate(self._answers(stream))
        alerts = result.filter(period="analysis").to_df()[("accuracy", "alert")].to_numpy()
        return [(place + 1) * CHUNK for place, alert in enumerate(alerts) if alert]

    def _answers(self, errors: Floats) -> Any:
        answer = np.arange(len(errors)) % 2
        return self._pandas.DataFrame(
            {"answer": answer, "probability": 0.2 + 0.6 * answer, "truth": answer ^ errors.astype(int)}
        )

    def _frame(self, rows: Floats) -> Any:
        return self._pandas.DataFrame(rows, columns=[f"c{place}" for place in range(rows.shape[1])])


TOOLS: dict[str, Callable[[], Tool]] = {"ours": OurMonitors, "evidently": Evidently, "nannyml": NannyMl}


def figures(tool: Tool, runs: int) -> dict[str, float]:
    """Measure all data sets but the large one: shares of runs, and labels."""
    rng, found = np.random.default_rng(13), {}
    for rows in PAIRS:
        alarms = sum(
            bool(tool.drifted(tool.keep(_rows(rng, rows[0])), _rows(rng, rows[1]))) for _ in range(runs)
        )
        found[f"A/A, {rows[0]:,} and {rows[1]:,} rows"] = alarms / runs
    named = 0
    for _ in range(runs):
        window = _rows(rng, 5_000)
        window[:, 0] += SHIFT_SD
        named += 0 in tool.drifted(tool.keep(_rows(rng, 5_000)), window)
    found["shift of .2 sd in 1 of 20 columns named"] = named / runs
    return found | _concept(tool, rng, runs)


def _rows(rng: np.random.Generator, rows: int) -> Floats:
    return rng.standard_normal((rows, COLUMNS))


def _concept(tool: Tool, rng: np.random.Generator, runs: int) -> dict[str, float]:
    false, delays = 0, []
    for _ in range(runs):
        reference = (rng.random(5_000) < 0.2).astype(np.float64)
        rates = np.repeat([0.2, 0.3], [QUIET, CHANGED])
        fired = tool.risen(reference, (rng.random(len(rates)) < rates).astype(np.float64))
        false += any(at <= QUIET for at in fired)
        delays.append(min((at - QUIET for at in fired if at > QUIET), default=math.inf))
    return {
        "errors: false alarm in 10,000 labels": false / runs,
        "errors .2 -> .3: found within 600 labels": float(np.mean(np.array(delays) <= FEW)),
        "errors .2 -> .3: median labels": float(np.median(delays)),
    }


def large(tool: Tool, rows: int) -> dict[str, float]:
    """Measure seconds and memory of one window of a million rows, what can be kept of the reference kept."""
    rng = np.random.default_rng(7)
    kept = tool.keep(_rows(rng, rows))
    window = _rows(rng, rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, used = time.perf_counter(), time.process_time()
    tool.drifted(kept, window)
    return {
        "1M x 20: seconds": time.perf_counter() - start,
        "1M x 20: CPU seconds": time.process_time() - used,
        "1M x 20: MiB above the rows": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / _MIB,
    }


def main() -> int:
    """Print the figures of a tool: TOOL large, or TOOL RUNS for the other sets."""
    name, what = sys.argv[1], sys.argv[2]
    tool = TOOLS[name]()
    found = large(tool, BIG) if what == "large" else figures(tool, int(what))
    print(
        "\n" + json.dumps({"tool": name if name == "ours" else f"{name} {version(name)}", "figures": found})
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
