"""How the demo looks on a terminal: a bar and a line of result for each step, and the table at the end."""

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table as Grid

from functions.evaluation import GateResult
from functions.reporting import Report
from functions.retraining.jobs import InspectionResult


class Interrupt:
    """Ctrl-C, heard even where Python drops the exception: in a finaliser or a weak reference's callback."""

    def __init__(self) -> None:
        self._came = False
        signal.signal(signal.SIGINT, self._come)

    def check(self) -> None:
        """Raise KeyboardInterrupt if it came."""
        if self._came:
            raise KeyboardInterrupt

    def _come(self, *_: object) -> None:
        self._came = True
        raise KeyboardInterrupt


@dataclass(slots=True)
class Step:
    """One step of the demo while it runs; Ctrl-C ends it. result: the line it ends with."""

    bar: Progress
    task: TaskID
    interrupt: Interrupt
    result: str = ""
    began: float = field(default_factory=time.monotonic)

    def now(self, doing: str, advance: float = 0.0) -> None:
        """Say what is being done; `advance` parts of the step are over."""
        self.interrupt.check()
        self.bar.update(self.task, description=doing, advance=advance)

    def reach(self, part: float) -> None:
        """Say that `part` parts of the step are over."""
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


def told(gate: GateResult) -> str:
    """A gate's outcome in a line."""
    ratios = ", ".join(f"{value:.3f} x {name}" for name, value in gate.ratios.items())
    verdict = "passed" if gate.passed else f"failed ({gate.reason or 'see its checks'})"
    return f"version {gate.version} {verdict} the gate: log loss {gate.metrics['log_loss']:.4f}, {ratios}"


def news(found: InspectionResult) -> list[str]:
    """What an inspection found and did, a line each."""
    lines = [
        f"{'over' if alarm.recovered else 'alarm'}: {alarm.text}"
        for watched in found.watched
        for alarm in watched.alarms
    ]
    lines += [f"retrain: {one.text}" for one in found.retraining if one.action == "retrain"]
    if found.rollout.action != "hold":
        lines.append(
            f"rollout of version {found.rollout.challenger}: {found.rollout.action}, {found.rollout.text}"
        )
    return lines


def summary(report: Report, rows: list[tuple[str, str]]) -> Grid:
    """The table at the end: the report's sentences, then `rows`."""
    grid = Grid(title="Flight delay, May to July", show_header=False)
    for line in report.summary:
        grid.add_row("", line)
    for name, value in rows:
        grid.add_row(name, value)
    return grid
