"""Demo of the whole platform in five minutes, on the flights of 2013: features, training, serving, monitoring, report.

No outcome is scripted: which trial wins, whether an alarm is raised, whether a challenger passes its gate, its shadow
and its canary, the platform decides on the data; the demo starts it, replays the season and shows what happened.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.compute as pc
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table as Grid

from examples.flights import FEATURES
from examples.flights.features import STORED, flight_delay
from examples.flights.model import delay_model
from examples.flights.prep import Prepared, prepare_entities, prepare_view
from examples.flights.replay import Replay, Season, Tally
from toque.functions.evaluation import GateResult, evaluate_gate
from toque.functions.features.jobs import build_training_set, record_feature_health
from toque.functions.prediction_log import drain_predictions, predictions_table
from toque.functions.project import load_project
from toque.functions.reporting import Report, model_report
from toque.functions.retraining.jobs import InspectionResult, RetrainResult, inspections, retrains
from toque.functions.rollout import rollout_status
from toque.functions.runtime.clock import Clock, ReplayClock
from toque.functions.runtime.context import Context, context_of
from toque.functions.runtime.durable.invocation import Invocation
from toque.functions.runtime.triggers import schedule
from toque.functions.training import Trained, train_tabular
from toque.functions.tuning.jobs import Sweep, tune_tabular
from toque.ray_apps.local import RunningPlatform, Settings, down, up
from toque.registry import NotFound, Table, TableSnapshot

JANUARY, APRIL, MAY, AUGUST = (datetime(2013, month, 1, tzinfo=UTC) for month in (1, 4, 5, 8))
INSPECTION_S = 900.0  # a retrain takes about a minute
SHIPPING_S = 30.0  # the longest that the last answers may take from a replica's log file to the table
MARK = "demo"  # marks a state folder as a demo's, which the next demo sets aside
MODEL = delay_model.name


def main(arguments: list[str] | None = None) -> int:
    """Run the demo and leave the platform up; returns the exit code. Ctrl-C ends the platform and leaves no process."""
    parser = argparse.ArgumentParser(prog="toque demo", description=__doc__)
    parser.add_argument("--requests", type=int, default=14_000, help="flights to predict (default 14,000)")
    parser.add_argument(
        "--until", type=datetime.fromisoformat, default=AUGUST, help="end of the replay (default 2013-08-01)"
    )
    chosen = parser.parse_args(arguments)
    settings = Settings.of(os.environ, project="examples.flights", clock="replay")
    console = Console()
    try:
        set_aside(settings.home, console)
        Demo(settings, console, chosen.requests, chosen.until).run()
    except BaseException as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave half of it running
        console.print(f"\n{type(error).__name__}: ending what was started")
        down(settings.home)
        if isinstance(error, KeyboardInterrupt):
            return 130
        raise
    return 0


def set_aside(home: Path, console: Console) -> None:
    """Move the state of an earlier demo out of the way; its store and log are kept.

    Raises: SystemExit if the folder holds something that no demo made.
    """
    if not (home / "store").exists():
        return
    if not (home / MARK).exists():
        raise SystemExit(f"{home} holds a store that is no demo's; run `toque --home OTHER_FOLDER demo`")
    down(home)
    kept = home.with_name(f"{home.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    home.rename(kept)
    console.print(f"the earlier demo's state was kept in {kept}")


class Demo:
    """Run of the demo on one platform."""

    def __init__(self, settings: Settings, console: Console, requests: int, until: datetime) -> None:
        self._settings = settings
        self._console = console
        self._requests = requests
        self._until = until if until.tzinfo else until.replace(tzinfo=UTC)
        self._interrupt = Interrupt()
        self._began = time.monotonic()

    def run(self) -> None:
        """Run every step in order. Raises: SystemExit if the first model fails its gate, or the log lacks an answer."""
        self._settings.home.mkdir(parents=True, exist_ok=True)
        (self._settings.home / MARK).touch()
        with self._step("Set-up", parts=3) as now:
            running = up(self._settings, report=lambda doing: now.now(doing, advance=1))
            self._context = context_of(os.environ)
            self._clock = _replayed(self._context.clock)
            self._clock.set(MAY)
            now.result = f"gateway, predictor and ticker at {running.url}"
        with self._step("Features", parts=len(STORED) + 1) as now:
            entities = self._prepare(now)
        with self._step("Training", parts=5) as now:
            self._first_version(entities, now)
        with self._step("Serving and monitoring", parts=(self._until - MAY) / timedelta(days=1)) as now:
            tally = self._season(running, now)
        with self._step("Report", parts=3) as now:
            report = self._report(tally, now)
        self._console.print(summary(report, self._rows(running, tally)))
        self._console.print(f"done in {time.monotonic() - self._began:.0f} s")

    def _step(self, name: str, parts: float) -> contextlib.AbstractContextManager[Step]:
        return step(self._console, self._interrupt, name, parts)

    def _prepare(self, now: Step) -> TableSnapshot:
        now.now("flights and labels")
        self._context.features().apply(FEATURES)
        entities = prepare_entities()
        views: list[Prepared] = []
        for view in STORED:
            now.now(view.name, advance=1)
            views.append(prepare_view(view.name))
        rows = sum(view.rows for view in views)
        now.result = f"{entities.rows:,} flights, {rows:,} rows of {len(views)} feature views"
        return entities.snapshot

    def _first_version(self, entities: TableSnapshot, now: Step) -> None:
        now.now("point-in-time training set")
        training = self._training_set("train", entities, JANUARY, APRIL)
        held_out = self._training_set("gate", entities, APRIL, MAY)
        now.now("sweep: 4 trials under ASHA", advance=1)
        sweep = self._sweep(training)
        now.now("training on two workers", advance=1)
        trained = self._train(entities, training, sweep)
        now.now("gate on April", advance=1)
        gate = evaluate_gate(MODEL, trained.version or 0, held_out, delay_model.label, delay_model.gate)
        now.result = f"best of {len(sweep.trials)} trials at {sweep.best_loss:.4f}; {gate_line(gate)}"
        if not gate.passed:
            raise SystemExit(f"there is nothing to serve: {gate_line(gate)}")
        now.now("approval", advance=1)
        registry = self._context.registry()
        registry.as_actor("ada").approve(MODEL, gate.version, comment="April is convincing")
        registry.set_alias(MODEL, "champion", gate.version)

    def _training_set(
        self, name: str, entities: TableSnapshot, start: datetime, end: datetime
    ) -> TableSnapshot:
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

    def _season(self, running: RunningPlatform, now: Step) -> Tally:
        season = Season.of(self._context.store, self._context.features(), MAY, self._until, self._requests)
        replay = Replay(
            season, self._context.features(), self._clock, running.url, running.token(), secrets.token_hex(3)
        )
        seen: set[str] = set()

        async def inspect(at: datetime) -> None:
            now.now("inspection")
            found = await _inspected(self._context, at, seen)
            for line in inspection_lines(found) if found else []:
                now.say(f"[dim]{at:%d %b}[/dim] {line}")

        def progress(at: datetime) -> None:
            now.now(f"{at:%d %b}, {len(replay.tally.answered):,} answers")
            now.reach((at - MAY) / timedelta(days=1))

        tally = asyncio.run(replay.run(inspect, progress))
        failures = "; ".join(f"{count} x {why}" for why, count in tally.failed.items())
        now.result = (
            f"{len(tally.answered):,} predictions, {tally.labels:,} labels, {failures or 'no failure'}"
        )
        if tally.retried:
            now.result += f", {tally.retried} requests sent again"
        return tally

    def _report(self, tally: Tally, now: Step) -> Report:
        now.now("prediction log against answers")
        lost, deadline = set(tally.answered), time.monotonic() + SHIPPING_S
        while lost and time.monotonic() < deadline:
            drain_predictions()
            lost -= _logged(self._context)
        if lost:
            raise SystemExit(f"{len(lost)} answered predictions are not in the log, {min(lost)} among them")
        now.now("figures of the features", advance=1)
        record_feature_health()
        now.now("page", advance=1)
        report = model_report(MODEL, MAY, self._until)
        self._page.parent.mkdir(exist_ok=True)
        self._page.write_bytes(self._context.store.get(report.key))
        now.result = f"{self._page}; every answer is in the prediction log"
        return report

    @property
    def _page(self) -> Path:
        return self._settings.home / "reports" / "demo.html"

    def _rows(self, running: RunningPlatform, tally: Tally) -> list[tuple[str, str]]:
        ended = retrains(MODEL).refresh().finished
        rows = [
            ("versions served", ", ".join(map(str, sorted(set(tally.answered.values()))))),
            ("retrains", "; ".join(retrain.text for retrain in ended) or "no retrain was due"),
        ]
        rows += [
            ("rollout", f"version {rollout.challenger}: {rollout.stage} by {rollout.rule} {rollout.note}")
            for rollout in rollout_status(MODEL).outcomes
        ]
        return [
            *rows,
            ("report", str(self._page)),
            (
                "still running",
                f"{running.url} (OpenAPI at {running.url}/openapi.json), Ray jobs at {running.jobs_url}",
            ),
            ("end it", "make down"),
        ]


def _logged(used: Context) -> set[str]:
    """Read the ids of the answered predictions in the log."""
    rows = Table(used.store, predictions_table(MODEL)).read(
        columns=["prediction_id"], where=~pc.field("shadow")
    )
    return set(rows["prediction_id"].to_pylist())


def _replayed(clock: Clock) -> ReplayClock:
    """Check that the platform's clock is one that can be moved, and return it."""
    if not isinstance(clock, ReplayClock):
        raise TypeError(f"the demo needs a platform on the replay clock, this one has {clock!r}")
    return clock


async def _inspected(used: Context, now: datetime, seen: set[str]) -> InspectionResult | None:
    """Wait for the inspection that is due at `now`, and return its result; None if no inspection was due.

    seen: invocations that were waited for before.
    Raises: InvocationFailed if the inspection is dead; TimeoutError if the ticker does not tick.
    """
    deadline = time.monotonic() + INSPECTION_S
    (inspection,) = inspections(load_project(used.project))
    due = schedule.tick_before(inspection.cron, now + timedelta(seconds=1))
    while True:
        (standing,) = schedule.status(used, schedules=[inspection])
        handled = standing.last_tick is not None and standing.last_tick >= due
        if handled and standing.invocation in {None, *seen}:
            return None
        if handled and standing.invocation_status in ("succeeded", "dead", "cancelled"):
            break
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"the inspection of {due} is not over; `toque status` says whether the ticker is up"
            )
        await asyncio.sleep(0.05)
    seen.add(str(standing.invocation))
    result: InspectionResult = Invocation(str(standing.invocation), used).result(1.0)
    retrained = tuple([await _retrained(used, each) for each in result.retraining])
    return result.model_copy(update={"retraining": retrained})


async def _retrained(used: Context, offered: RetrainResult) -> RetrainResult:
    """Wait for a retrain that an inspection submitted, and return its result: the replayed days must not pass meanwhile.

    Raises: InvocationFailed if it is dead; TimeoutError if it does not end.
    """
    if offered.invocation is None:
        return offered
    submitted, deadline = Invocation[RetrainResult](offered.invocation, used), time.monotonic() + INSPECTION_S
    while not submitted.record().ended:
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"the retrain {submitted.id} is not over; `toque invocations logs {submitted.id}` says why"
            )
        await asyncio.sleep(0.25)
    return submitted.result(1.0)


class Interrupt:
    """Handler of Ctrl-C that remembers it where Python drops the exception: in a finaliser or a weakref's callback."""

    def __init__(self) -> None:
        self._received = False
        signal.signal(signal.SIGINT, self._handle)

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was received."""
        if self._received:
            raise KeyboardInterrupt

    def _handle(self, *_: object) -> None:
        self._received = True
        raise KeyboardInterrupt


@dataclass(slots=True)
class Step:
    """Step of the demo while it runs; Ctrl-C ends it. result: the line printed at its end."""

    bar: Progress
    task: TaskID
    interrupt: Interrupt
    result: str = ""
    began: float = field(default_factory=time.monotonic)

    def now(self, doing: str, advance: float = 0.0) -> None:
        """Show what is being done, and advance the bar by `advance` parts."""
        self.interrupt.check()
        self.bar.update(self.task, description=doing, advance=advance)

    def reach(self, part: float) -> None:
        """Move the bar to `part` parts of the step."""
        self.interrupt.check()
        self.bar.update(self.task, completed=part)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.bar.console.print(f"  {line}", soft_wrap=True)


@contextlib.contextmanager
def step(console: Console, interrupt: Interrupt, name: str, parts: float) -> Iterator[Step]:
    """Show a bar of `parts` parts while the step runs, then its result and how long it took."""
    columns = (
        TextColumn(f"[bold]{name}[/bold]"),
        BarColumn(20),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        running = Step(bar, bar.add_task("", total=parts), interrupt)
        yield running
    interrupt.check()
    seconds = time.monotonic() - running.began
    console.print(f"[bold]{name}[/bold] [dim]{seconds:.0f} s[/dim]  {running.result}", soft_wrap=True)


def gate_line(gate: GateResult) -> str:
    """Describe a gate's outcome in one line."""
    ratios = ", ".join(f"{value:.3f} x {name}" for name, value in gate.ratios.items())
    verdict = "passed" if gate.passed else f"failed ({gate.reason or 'see its checks'})"
    return f"version {gate.version} {verdict} the gate: log loss {gate.metrics['log_loss']:.4f}, {ratios}"


def inspection_lines(found: InspectionResult) -> list[str]:
    """List what an inspection found and did, one line each."""
    lines = [
        f"{'over' if alarm.recovered else 'alarm'}: {alarm.text}"
        for watched in found.watched
        for alarm in watched.alarms
    ]
    lines += [f"retrain: {answer.text}" for answer in found.retraining if answer.action == "retrain"]
    if found.rollout.action != "hold":
        lines.append(
            f"rollout of version {found.rollout.challenger}: {found.rollout.action}, {found.rollout.text}"
        )
    return lines


def summary(report: Report, rows: list[tuple[str, str]]) -> Grid:
    """Make the table at the end, with the report's sentences, then `rows`."""
    grid = Grid(title="Flight delay, May to July", show_header=False)
    for line in report.summary:
        grid.add_row("", line)
    for name, value in rows:
        grid.add_row(name, value)
    return grid


if __name__ == "__main__":
    raise SystemExit(main())
