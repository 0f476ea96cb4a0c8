"""Terminal output of the demo: a bar and a line of result for each step, and the table at the end."""

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table as Grid

from toque.functions.evaluation import GateResult
from toque.functions.reporting import Report
from toque.functions.retraining.jobs import InspectionResult


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
