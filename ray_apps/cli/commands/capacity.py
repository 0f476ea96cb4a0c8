"""`toque capacity` and `plan train`: what a rate that nobody has tried, or a training, needs before it is paid for.

The commands themselves import `load` with numpy and scipy, and `functions`.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toque.ray_apps.cli.arguments import MODEL, Commands, Given, add, arg, flag, group
from toque.ray_apps.cli.client import STATE_FILE
from toque.ray_apps.cli.commands.load import EXPERIMENT, target_of, telling
from toque.ray_apps.cli.errors import Failed, UsageError
from toque.ray_apps.cli.output import chosen, columns, facts, note, say, table, value

if TYPE_CHECKING:
    from toque.functions.runtime.receipt import Prices
    from toque.functions.training.planning import Card, Decoder, Plan, Setup
    from toque.load.capacity_model.fit import Interval, Needs, Point


_CAPACITY = (
    arg("--rps RATE", "requests/s that the model shall answer", type=float, required=True),
    arg("--rows N", "rows of each of them (default: 1)", type=int, default=1),
    arg(
        "--measure-rows N,N,…", "rows of the requests that are measured (default: 1,16,64)", default="1,16,64"
    ),
    arg("--seconds S", "length of each measurement (default: 4)", type=float, default=4.0),
    arg("--keys FILE", "JSON lines for requests by key (default: tensors are sent)"),
    arg("--points FILE", "take points from a file instead of measuring them here"),
    arg("--save FILE", "write the points to a file, for --points"),
    arg("--cores N", "cores of a node (default: 16)", type=int, default=16),
    arg("--nodes N", "nodes there are at least (default: 1)", type=int, default=1),
    arg(
        "--utilisation SHARE",
        "of a replica, at which its latency is still fine (default: 0.6)",
        type=float,
        default=0.6,
    ),
    arg(
        "--lowest-share SHARE", "rate of the quietest hour over --rps (default: 0.2)", type=float, default=0.2
    ),
    arg("--labels N", "labels for a prediction (default: 0)", type=float, default=0.0),
)

_PLANNED = (
    arg("config", "folder of a Hugging Face model, or its config.json"),
    arg("--tokens N", "tokens of the whole training, as in 2e9", type=float, required=True),
    arg("--card NAME", "kind of card, such as h100, a100, l4 (default: h100)", default="h100"),
    arg("--cards N", "number of cards, one worker each (default: 1)", type=int, default=1),
    arg("--batch ROWS", "rows of a step over all cards (default: 64)", type=int, default=64),
    arg("--length TOKENS", "tokens of a row (default: 1024)", type=int, default=1024),
    arg(
        "--sharding KIND",
        "replicate or shard (default: the faster that fits)",
        choices=("replicate", "shard"),
    ),
    arg("--tensor N", "cards that split each layer, with --sharding shard (default: 1)", type=int),
    arg("--accumulate N", "micro-batches of a step (default with --sharding: 1)", type=int),
    flag("--recompute", "activation checkpointing, with --sharding"),
    arg("--precision KIND", "bf16 or fp32 (default: bf16)", choices=("bf16", "fp32"), default="bf16"),
    arg("--lora RANK", "train adapters of this rank, not all weights", type=int, default=0),
    arg("--valid-fraction F", "share of rows held out, scored after each epoch", type=float, default=0.1),
    arg("--run-tokens-s N", "tokens/s of a short run of this model on one such card", type=float),
    flag("--run-recomputed", "the short run had activation checkpointing"),
)


def register(commands: Commands) -> None:
    """Add the commands `capacity` and `plan` to those of `toque`."""
    add(commands, "capacity", _capacity, MODEL, *_CAPACITY)
    actions = group(commands, "plan", "Say what a training needs and costs before it is paid for.")
    add(actions, "train", _plan_train, *_PLANNED)


def _capacity(given: Given) -> int:
    """Say what a rate of requests needs, what it costs and what breaks first; exit code 1 if a part breaks."""
    from toque.load.capacity_model.fit import Wish, needs_of, read_points
    from toque.load.capacity_model.model import Cluster

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
    from toque.load.capacity_model.fit import write_points
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


def _plan_train(given: Given) -> int:
    """Say memory a card, step time, tokens/s, days and money of a training; exit code 1 if no card holds it."""
    from toque.functions.training.planning import CARDS, Decoder, Setup, plan, proposed

    if given.card not in CARDS:
        raise UsageError(f"--card {given.card!r}: choose one of {', '.join(CARDS)}")
    if given.sharding is None and (given.accumulate or given.recompute or given.tensor):
        raise UsageError(
            "--accumulate, --recompute and --tensor are chosen for you unless --sharding is given"
        )
    card = CARDS[given.card]
    try:
        model = Decoder.read(Path(given.config))
        asked = Setup(
            given.cards,
            given.batch,
            given.length,
            given.sharding or ("shard" if given.cards > 1 else "replicate"),
            given.accumulate or 1,
            given.recompute,
            half=given.precision == "bf16",
            lora=given.lora,
            tensor=given.tensor or 1,
            valid=given.valid_fraction,
        )
        reached = _reached(given, asked, model, card)
        best = proposed(model, asked, card, reached=reached)
        found = plan(model, asked, card, reached=reached) if given.sharding or best is None else best
    except ValueError as error:
        raise UsageError(str(error)) from error
    _show_plan(given, found, find_prices())
    if not found.fits:
        raise Failed(_refusal(given, found, best))
    if found is best and found.setup.cards != given.cards:
        note(f"{given.cards} × {given.card} cannot hold it: planned for {found.setup.cards}")
    return 0


def _reached(given: Given, asked: Setup, model: Decoder, card: Card) -> float:
    """Share of the card's peak that a short run reached, or a usual one if none was given. Raises: ValueError if it is impossible."""
    from toque.functions.training.planning import REACHED, plan

    if given.run_tokens_s is None:
        note("no --run-tokens-s: times are for .35 of the card's peak; published runs reach .27 to .42")
        return REACHED
    alone = replace(
        asked, cards=1, sharding="replicate", tensor=1, accumulate=1, recompute=given.run_recomputed
    )
    alone = replace(alone, batch=max(1, asked.batch // asked.cards * asked.tensor))
    whole = plan(model, alone, card, reached=1.0)
    spent = alone.tokens / given.run_tokens_s - whole.step["update"]
    computed = (
        whole.step["arithmetic"] + whole.step["validation"]
    )  # a run's tokens a second are those of whole epochs
    share = computed / spent if spent > 0 else 2.0
    if share > 1.0:
        raise ValueError(
            f"--run-tokens-s {given.run_tokens_s:g}: above the peak of a {given.card}; give those of one card"
        )
    return share


def _refusal(given: Given, found: Plan, best: Plan | None) -> str:
    needed = f"a card needs {found.memory_bytes / 1e9:,.1f} GB of {found.usable_bytes / 1e9:,.1f} usable on a {given.card}"
    if best is None:
        return f"{needed}, and no number of cards up to the rows of a step holds it: fewer --length, a larger --card, or --lora"
    return f"{needed}; this fits and is the fastest of those that do: {best.setup.words}"


def _show_plan(given: Given, found: Plan, prices: Prices | None) -> None:
    hours = found.card_hours(given.tokens)
    about = {
        "setup": f"{found.setup.cards} × {given.card}: {found.setup.words}",
        "memory": f"{found.memory_bytes / 1e9:,.1f} GB a card of {found.usable_bytes / 1e9:,.1f} usable",
        "step": f"{found.step_s:,.3f} s",
        "tokens": f"{found.tokens_s:,.0f} a second",
        "days": f"{found.days(given.tokens):,.2f}, {hours:,.0f} card-hours",
        "price": f"{hours * prices.gpu_hour:,.2f} {prices.currency}" if prices else None,
    }
    parts = [
        {"part": name, "of": "memory", "figure": f"{each / 1e9:,.2f} GB"}
        for name, each in found.memory.items()
    ]
    parts += [{"part": name, "of": "step", "figure": f"{each:,.3f} s"} for name, each in found.step.items()]
    if chosen(given.output) == "json":
        figures = {"memory_bytes": found.memory_bytes, "step_s": found.step_s, "tokens_s": found.tokens_s}
        money = hours * prices.gpu_hour if prices else None
        value(
            about
            | figures
            | {"fits": found.fits, "cards": found.setup.cards, "card_hours": hours, "money": money}
            | {"memory_parts": found.memory, "step_parts": found.step}
        )
        return
    facts(given.output, _PLAN, about)
    if prices is None:
        note("no price list: set `prices` in the profile, or TOQUE_PRICES, to see what it costs")
    say("")
    table(given.output, _PLAN_PARTS, parts)


def find_prices() -> Prices | None:
    """Read the price list of the environment or the profile. Raises: UsageError."""
    from toque.functions.runtime.receipt import Prices

    text = os.environ.get("TOQUE_PRICES")
    try:
        return Prices.model_validate_json(text) if text else None
    except ValueError as error:
        raise UsageError(f"TOQUE_PRICES: {error}") from error


_NEEDS = columns("request | replicas | cores | nodes | price | profile | measured")
_PARTS = columns(
    "part: name | load over capacity: utilisation | verdict | load | capacity | unit | remedy", texts="remedy"
)
_PLAN = columns("setup | memory | step | tokens | days | price")
_PLAN_PARTS = columns("part | of | figure")
