"""The whole kitchen in five minutes: prep, recipe, counter, taste test, inspector, report, on the flights of 2013.

Nothing here is scripted: which trial wins, whether an alarm comes, whether a challenger passes its gate, its shadow and
its canary, all that the platform decides on the data; the demo starts it, replays the season and shows what happened.
"""

import argparse
import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table as Grid

from examples.flights import FEATURES
from examples.flights.features import STORED, flight_delay
from examples.flights.model import delay_model
from examples.flights.prep import Prepared, prepare_entities, prepare_view
from examples.flights.replay import Replay, Season, Tally
from functions.evaluation import GateResult, evaluate_gate
from functions.features import build_training_set
from functions.project import load_project
from functions.reporting import Report, model_report
from functions.retraining import Inspected, inspections, retrains
from functions.rollout import rollout_status
from functions.runtime import schedule
from functions.runtime.clock import Clock, ReplayClock
from functions.runtime.context import Context, context_of
from functions.runtime.invocation import Invocation
from functions.training import Trained, train_tabular
from functions.tuning import Sweep, tune_tabular
from ray_apps.local import Running, Settings, down, up
from registry import NotFound, TableSnapshot

JANUARY, APRIL, MAY, AUGUST = (datetime(2013, month, 1, tzinfo=UTC) for month in (1, 4, 5, 8))
INSPECTION_S = 900.0  # an inspection that retrains takes about a minute
MARK = "demo"  # names a state folder as ours, to be set aside by the next demo
MODEL = delay_model.name
Say = Callable[[str], None]


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns the exit code. The platform stays up; Ctrl-C ends it and leaves no process."""
    parser = argparse.ArgumentParser(prog="toque demo", description=__doc__)
    parser.add_argument("--requests", type=int, default=14_000, help="flights asked about (default 14,000)")
    parser.add_argument("--until", type=datetime.fromisoformat, default=AUGUST, help="end of the replay")
    parser.add_argument("--home", type=Path, default=None, help="state folder (default .toque)")
    chosen = parser.parse_args(arguments)
    settings = Settings.of(os.environ, home=chosen.home, project="examples.flights", clock="replay")
    console = Console()
    try:
        set_aside(settings.home, console)
        return asyncio.run(Demo(settings, console, chosen.requests, chosen.until).run())
    except BaseException as error:
        console.print(f"\n{type(error).__name__}: ending what was started")
        down(settings.home)
        if isinstance(error, KeyboardInterrupt):
            return 130
        raise


def set_aside(home: Path, console: Console) -> None:
    """Move the state of an earlier demo out of the way; it is kept, log and all.

    Raises: SystemExit if the folder holds something that no demo made.
    """
    if not (home / "store").exists():
        return
    if not (home / MARK).exists():
        raise SystemExit(f"{home} holds a store that is no demo's; run `toque demo --home OTHER_FOLDER`")
    down(home)
    kept = home.with_name(f"{home.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    home.rename(kept)
    console.print(f"the earlier demo's state was kept in {kept}")


class Demo:
    """One run of the demo on one platform."""

    def __init__(self, settings: Settings, console: Console, requests: int, until: datetime) -> None:
        self._settings = settings
        self._console = console
        self._requests = requests
        self._until = until if until.tzinfo else until.replace(tzinfo=UTC)
        self._began = time.monotonic()

    async def run(self) -> int:
        """Every step in order."""
        self._settings.home.mkdir(parents=True, exist_ok=True)
        (self._settings.home / MARK).touch()
        with self._step("Set-up") as say:
            running = up(self._settings, report=say)
            self._context = context_of(os.environ)
            self._clock = _replayed(self._context.clock)
            self._clock.set(MAY)
            say(f"gateway, predictor and ticker at {running.url}")
        with self._step("Prep") as say:
            prepared = self._prepare()
            say(
                f"{sum(one.rows for one in prepared):,} rows in {len(prepared)} tables, {len(STORED)} feature views"
            )
        entities = next(one.snapshot for one in prepared if one.name == delay_model.entities)
        with self._step("Recipe") as say:
            self._recipe(entities, say)
        with self._step("Counter and inspector") as say:
            tally = await self._season(running, say)
        with self._step("Report") as say:
            report = model_report(MODEL, MAY, self._until)
            path = self._settings.home / "reports" / "demo.html"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(self._context.store.get(report.key))
            say(str(path))
        self._summary(running, report, tally)
        return 0

    def _prepare(self) -> list[Prepared]:
        self._context.features().apply(FEATURES)
        entities = prepare_entities.remote()
        views = [prepare_view.remote(view.name) for view in STORED]
        return [entities.result(), *(view.result() for view in views)]

    def _recipe(self, entities: TableSnapshot, say: Say) -> None:
        training = self._set("train", entities, JANUARY, APRIL)
        held_out = self._set("gate", entities, APRIL, MAY)
        sweep = self._sweep(training)
        say(
            f"best of {len(sweep.trials)} trials: validation loss {sweep.best_loss:.4f} in {sweep.seconds:.0f} s"
        )
        trained = self._train(entities, training, sweep)
        gate = evaluate_gate(MODEL, trained.version or 0, held_out, delay_model.label, delay_model.gate)
        say(_told(gate))
        if not gate.passed:
            raise SystemExit("the first model failed its gate: there is nothing to serve")
        registry = self._context.registry()
        registry.as_actor("ada").approve(MODEL, gate.version, comment="April is convincing")
        registry.set_alias(MODEL, "champion", gate.version)

    def _set(self, name: str, entities: TableSnapshot, start: datetime, end: datetime) -> TableSnapshot:
        return build_training_set(
            flight_delay.name, entities, delay_model.label, start, end, name=f"training/{MODEL}/{name}"
        )

    def _sweep(self, training: TableSnapshot) -> Sweep:
        return tune_tabular(
            MODEL,
            training,
            delay_model.label,
            list(delay_model.numeric),
            list(delay_model.categorical),
            params=delay_model.training,
            num_samples=4,
            max_epochs=4,
        )

    def _train(self, entities: TableSnapshot, training: TableSnapshot, sweep: Sweep) -> Trained:
        registry = self._context.registry()
        try:
            registry.get_model(MODEL)
        except NotFound:
            registry.create_model(MODEL, policy=delay_model.governance)
        return train_tabular(
            MODEL,
            training,
            delay_model.label,
            list(delay_model.numeric),
            list(delay_model.categorical),
            params=sweep.best_params.model_copy(update={"epochs": delay_model.training.epochs}),
            num_workers=2,
            features=self._context.features().definitions_digest(flight_delay.name),
            datasets=[entities],
            feature_service=flight_delay.name,
        )

    async def _season(self, running: Running, say: Say) -> Tally:
        season = Season.of(self._context.store, self._context.features(), MAY, self._until, self._requests)
        replay = Replay(
            season, self._context.features(), self._clock, running.url, running.token(), secrets.token_hex(3)
        )
        days = (self._until - MAY) / timedelta(days=1)
        columns = (TextColumn("  {task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())

        seen: set[str] = set()

        async def inspect(now: datetime) -> None:
            found = await asyncio.to_thread(_inspected, self._context, now, seen)
            if found is None:
                return
            for line in _news(found):
                progress.console.print(f"  [dim]{now:%d %b}[/dim] {line}")

        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task("May to July", total=days)
            tally = await replay.live(
                inspect, lambda at: progress.update(task, completed=(at - MAY) / timedelta(days=1))
            )
        say(
            f"{len(tally.answered):,} predictions, {tally.labels:,} labels, {sum(tally.failed.values())} failures"
        )
        for why, count in tally.failed.items():
            say(f"{count} x {why}")
        return tally

    def _summary(self, running: Running, report: Report, tally: Tally) -> None:
        grid = Grid(title="Flight delay, May to July", show_header=False)
        for line in report.summary:
            grid.add_row("", line)
        grid.add_row("versions served", ", ".join(map(str, sorted(set(tally.answered.values())))))
        ended = retrains(MODEL).refresh().finished
        grid.add_row("retrains", "; ".join(one.text for one in ended) or "none was called for")
        for outcome in rollout_status(MODEL).outcomes:
            grid.add_row(
                "rollout", f"version {outcome.challenger}: {outcome.stage} by {outcome.rule} {outcome.note}"
            )
        grid.add_row("report", str(self._settings.home / "reports" / "demo.html"))
        grid.add_row(
            "still running",
            f"{running.url} (OpenAPI at {running.url}/openapi.json), Ray jobs at {running.jobs_url}",
        )
        grid.add_row("end it", "make down")
        self._console.print(grid)
        self._console.print(f"done in {time.monotonic() - self._began:.0f} s")

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[Say]:
        began = time.monotonic()
        self._console.print(f"[bold]{name}[/bold]")
        yield lambda line: self._console.print(f"  {line}")
        self._console.print(f"  [dim]{time.monotonic() - began:.0f} s[/dim]")


def _replayed(clock: Clock) -> ReplayClock:
    """The platform's clock, which must be one that can be moved."""
    if not isinstance(clock, ReplayClock):
        raise TypeError(f"the demo needs a platform on the replay clock, this one has {clock!r}")
    return clock


def _inspected(used: Context, now: datetime, seen: set[str]) -> Inspected | None:
    """Wait until the schedule has handled every tick up to `now`, and its inspection is over; None if none was due.

    seen: invocations that were waited for before.
    Raises: InvocationFailed if the inspection is dead; TimeoutError if the ticker does not tick.
    """
    deadline = time.monotonic() + INSPECTION_S
    (inspection,) = inspections(load_project(used.project))
    due = schedule.tick_before(inspection.cron, now + timedelta(seconds=1))
    while True:
        (standing,) = schedule.status(used, schedules=[inspection])
        recorded = standing.invocation is None or standing.invocation_status is not None
        if recorded and standing.last_tick is not None and standing.last_tick >= due:
            break
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"the ticker has not handled the tick of {due}; `toque status` says whether it is up"
            )
        time.sleep(0.05)
    if standing.invocation is None or standing.invocation in seen:
        return None
    seen.add(standing.invocation)
    result: Inspected = Invocation(standing.invocation, used).result(INSPECTION_S)
    return result


def _told(gate: GateResult) -> str:
    ratios = ", ".join(f"{value:.3f} x {name}" for name, value in gate.ratios.items())
    verdict = "passed" if gate.passed else f"failed ({gate.reason or 'see its checks'})"
    return f"version {gate.version} {verdict} the gate: log loss {gate.metrics['log_loss']:.4f}, {ratios}"


def _news(found: Inspected) -> list[str]:
    news = [f"alarm: {alarm.text}" for watched in found.watched for alarm in watched.alarms]
    news += [f"retrain: {one.text}" for one in found.retraining if one.action == "retrain"]
    if found.rollout.action != "hold":
        news.append(
            f"rollout of version {found.rollout.challenger}: {found.rollout.action}, {found.rollout.text}"
        )
    return news


if __name__ == "__main__":
    raise SystemExit(main())
