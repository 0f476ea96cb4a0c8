"""`toque capacity`: what a rate needs that nobody has tried, from a few measured points of a model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toque.ray_apps.cli.arguments import MODEL, arg
from toque.ray_apps.cli.client import STATE_FILE
from toque.ray_apps.cli.command import Commands, Given, add
from toque.ray_apps.cli.commands.serving.load import EXPERIMENT, target_of, telling
from toque.ray_apps.cli.errors import UsageError
from toque.ray_apps.cli.output import chosen, columns, facts, note, say, table, value
from toque.ray_apps.cli.prices import find_prices

if TYPE_CHECKING:
    from toque.functions.runtime.receipt import Prices
    from toque.load.capacity_model.fit import Interval
    from toque.load.capacity_model.needs import Needs
    from toque.load.capacity_model.points import Point

# load, numpy and scipy are imported by the command itself.

_RPS = arg("--rps RATE", "requests/s that the model shall answer", type=float, required=True)
_ROWS = arg("--rows N", "rows of each of them (default: 1)", type=int, default=1)
_KEYS = arg("--keys FILE", "JSON lines for requests by key (default: tensors are sent)")
_MEASURE = arg(
    "--measure-rows N,N,…", "rows of the requests that are measured (default: 1,16,64)", default="1,16,64"
)
_SECONDS = arg("--seconds S", "length of each measurement (default: 4)", type=float, default=4.0)
_POINTS = arg("--points FILE", "take points from a file instead of measuring them here")
_SAVE = arg("--save FILE", "write the points to a file, for --points")
_CORES = arg("--cores N", "cores of a node (default: 16)", type=int, default=16)
_NODES = arg("--nodes N", "nodes there are at least (default: 1)", type=int, default=1)
_UTILISATION = arg(
    "--utilisation SHARE",
    "of a replica, at which its latency is still fine (default: 0.6)",
    type=float,
    default=0.6,
)
_LOWEST = arg(
    "--lowest-share SHARE", "rate of the quietest hour over --rps (default: 0.2)", type=float, default=0.2
)
_LABELS = arg("--labels N", "labels for a prediction (default: 0)", type=float, default=0.0)


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    measuring = (_MEASURE, _SECONDS, _KEYS, _POINTS, _SAVE)
    add(
        commands,
        "capacity",
        _capacity,
        MODEL,
        _RPS,
        _ROWS,
        *measuring,
        _CORES,
        _NODES,
        _UTILISATION,
        _LOWEST,
        _LABELS,
    )


def _capacity(given: Given) -> int:
    """Say what a rate of requests needs, what it costs and what breaks first; exit code 1 if a part breaks."""
    from toque.load.capacity_model.model import Cluster
    from toque.load.capacity_model.needs import Wish, needs_of
    from toque.load.capacity_model.points import read_points

    if not 0 < given.utilisation < 1:
        raise UsageError(f"--utilisation {given.utilisation:g}: give a share between 0 and 1")
    prices = find_prices()
    with telling():
        points = read_points(Path(given.points)) if given.points else _measured(given)
        wish = Wish(
            given.rps,
            given.rows,
            given.utilisation,
            given.lowest_share,
            keyed=1.0 if given.keys else 0.0,
            labels=given.labels,
        )
        cluster = Cluster(given.nodes, cores=given.cores)
        found = needs_of(points, wish, cluster, cpu_hour=prices.cpu_hour if prices else None)
    _show(given, found, prices)
    return 1 if any(part.utilisation > 1 for part in found.parts) else 0


def _measured(given: Given) -> list[Point]:
    """Measure points on the platform of this machine, and keep them. Raises: NotPossible; UsageError."""
    from toque.load.capacity_model.points import write_points
    from toque.load.capacity_model.probe import Probe
    from toque.load.scenarios.keeping import record

    try:
        rows = sorted({int(each) for each in given.measure_rows.split(",")})
    except ValueError:
        raise UsageError(
            f"--measure-rows {given.measure_rows!r}: write whole numbers, as in 1,16,64"
        ) from None
    keys = Path(given.keys) if given.keys else None
    target = target_of(given, given.model)
    probe = Probe(target, Path(given.home), _redis_url(given), keys=keys, seconds=given.seconds)
    points = probe.points(rows, report=note)
    if given.save:
        write_points(Path(given.save), points)
    record(
        given.client,
        EXPERIMENT,
        f"capacity {given.model}",
        params={"model": given.model},
        metrics={},
        tags={"toque.load": "capacity"},
        files={"points.json": json.dumps([point.model_dump(exclude_none=True) for point in points])},
    )
    return points


def _redis_url(given: Given) -> str:
    """Address of the Redis of the platform that runs here. Raises: UsageError if none does."""
    try:
        state = json.loads((Path(given.home) / STATE_FILE).read_text())
    except FileNotFoundError:
        raise UsageError(
            f"no platform was started in {given.home}; measure where it runs, or give --points"
        ) from None
    return str(state["redis_url"])


def _show(given: Given, found: Needs, prices: Prices | None) -> None:
    """Print the needs, the bounds for the profile, then each part of the cluster."""
    rows = [asdict(part) | {"utilisation": part.utilisation, "verdict": part.verdict} for part in found.parts]
    about = _facts(given, found, prices)
    if chosen(given.output) == "json":
        value(asdict(found) | {"parts": rows, "profile": about["profile"]})
        return
    facts(given.output, _NEEDS, about)
    if prices is None:
        note("no price list: set `prices` in the profile, or TOQUE_PRICES, to see what it costs")
    say("")
    table(given.output, _PARTS, rows)


def _facts(given: Given, found: Needs, prices: Prices | None) -> dict[str, Any]:
    bounds = ", ".join(f"{name}: {each:g}" for name, each in found.bounds.options().items())
    price = found.price_hour
    return {
        "request": f"{_text(found.request_s.times(1e6), 0)} µs of a core in its replica, which takes {found.idle:.2f} cores anyway",
        "replicas": _text(found.replicas, 0),
        "cores": f"{_text(found.cores, 1)} busy, doors and Redis included",
        "nodes": f"{found.nodes} of {given.cores} cores",
        "price": f"{_text(price, 2)} {prices.currency} an hour" if price and prices else None,
        "profile": f"models: {{{given.model}: {{{bounds}}}}}",
        "measured": ", ".join(found.measured_parts) or "the replica alone",
    }


def _text(interval: Interval, digits: int) -> str:
    return f"{interval.value:,.{digits}f} ({interval.low:,.{digits}f} to {interval.high:,.{digits}f})"


_NEEDS = columns("request | replicas | cores | nodes | price | profile | measured")
_PARTS = columns(
    "part: name | load over capacity: utilisation | verdict | load | capacity | unit | remedy", texts="remedy"
)
