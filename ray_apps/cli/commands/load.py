"""`toque load`: scenarios of load, the knee of a model, and what changed between two runs.

Runs are kept as runs of the experiment `load`, each with its histograms, so that `toque runs list load` shows them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toque.ray_apps.cli.arguments import Commands, Given, add, arg, flag, group
from toque.ray_apps.cli.commands.runs import run_of
from toque.ray_apps.cli.errors import Failed, UsageError
from toque.ray_apps.cli.output import chosen, columns, note, say, table, value

if TYPE_CHECKING:
    from toque.load.scenarios.knee import Step
    from toque.load.scenarios.result import LoadRun
    from toque.load.scenarios.target import Target

# load and numpy are imported by the commands that need them.

EXPERIMENT = "load"
_FILE = "load.json"

_MODEL = arg("model", "name of the model, as `toque models list` shows it")
_ANY_MODEL = arg(
    "--model NAME", "model to ask, where the scenario names none (default: the first with a champion)"
)
_SLO = arg("--slo FILE", "scenarios and objectives (default: those that come with Toque)")
_SCENARIO = arg("--scenario NAME", "which of them (default: the first)")
_KEYS = arg("--keys FILE", "JSON lines for requests by key (default: tensors are sent)")
_PROCESSES = arg("--processes N", "processes that send, in place of the scenario's number", type=int)
_REMOTE = arg("--remote-workers N", "workers of locust that join from other machines", type=int, default=0)
_NO_STORE = flag("--no-store", "do not keep the run")
_SAVE = arg("--save FILE", "write the run to a file, too")
_BEFORE = arg(
    "before RUN", "ID of the run before, as `toque runs list load` shows it, or a file that --save wrote"
)
_AFTER = arg("after RUN", "ID or file of the run after")
_P99 = arg(
    "--p99-ms MS", "p99 that must hold, in the median second (default: 100)", type=float, default=100.0
)
_ERRORS = arg(
    "--error-share SHARE", "share that may fail or be dropped (default: 0.01)", type=float, default=0.01
)
_START = arg("--start RATE", "rate to begin with, in requests/s (default: 20)", type=float, default=20.0)
_STEP = arg("--step-s SECONDS", "length of a step after its warm-up (default: 5)", type=float, default=5.0)
_PRECISION = arg("--precision SHARE", "width of the answer (default: 0.1)", type=float, default=0.1)
_ROWS = arg("--rows N", "rows of a request (default: 1)", type=int, default=1)


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    actions = group(commands, "load", "Put a load on a model, find its knee, compare two loads.")
    options = (_SCENARIO, _SLO, _ANY_MODEL, _KEYS, _PROCESSES, _REMOTE, _SAVE, _NO_STORE)
    add(actions, "run", _run, *options)
    add(actions, "compare", _compare, _BEFORE, _AFTER)
    knee = (_P99, _ERRORS, _START, _STEP, _PRECISION, _ROWS, _KEYS, _PROCESSES, _NO_STORE)
    add(actions, "find-knee", _find_knee, _MODEL, *knee)


def _run(given: Given) -> int:
    """Run a scenario of load; exit code 1 if an objective is missed or ends it early."""
    from toque.load.scenarios.run import SLO, described, report_lines
    from toque.load.scenarios.scenario import Slo
    from toque.load.scenarios.sending.processes import put_load

    with telling():
        name, scenario = Slo.read(Path(given.slo) if given.slo else SLO).pick(given.scenario)
        if given.processes:
            scenario = scenario.model_copy(update={"processes": given.processes})
        target = target_of(given, given.model)
        note(f"{target.model} at {target.url}: {described(scenario)}")
        keys = Path(given.keys) if given.keys else None
        run = put_load(target, name, scenario, keys=keys, remote_workers=given.remote_workers, report=note)
    if given.save:
        Path(given.save).write_text(run.model_dump_json())
    kept = "" if given.no_store else keep(given, f"{name} {run.model}", run, held=run.held)
    if chosen(given.output) == "json":
        findings = [asdict(finding) for finding in run.findings()]
        value(
            {
                "run": kept,
                "held": run.held,
                "aborted": run.aborted,
                "metrics": run.metrics(),
                "findings": findings,
            }
        )
    else:
        for line in report_lines(run):
            say(line)
        if kept:
            say(f"  kept as run {kept}")
    return 0 if run.held else 1


def _compare(given: Given) -> int:
    """Show what changed between two runs of one scenario; exit code 1 if something is worse."""
    from toque.load.scenarios.result import compare

    with telling():
        found = compare(_read(given, given.before), _read(given, given.after))
    rows = [asdict(each) | {"seen": each.seen, "worse": each.worse} for each in found]
    for row in rows:
        row["verdict"] = "worse" if row["worse"] else "better" if row["seen"] else "no difference seen"
    table(given.output, _DIFFERENCES, rows, remark="change: after over before, of error_share the difference")
    return 1 if any(each.worse for each in found) else 0


def _find_knee(given: Given) -> int:
    """Find the highest rate at which a model's p99 and errors hold; exit code 1 if none does."""
    from toque.load.scenarios.knee import Criterion, find_knee
    from toque.load.scenarios.scenario import Ask, Scenario, Steady

    keys = Path(given.keys) if given.keys else None
    with telling():
        scenario = Scenario(
            shape=Steady(rate=given.start, seconds=given.step_s),
            mix=(Ask(rows=given.rows, keys=keys),),
            warm_up_s=1.0,
            processes=given.processes or 1,
        )
        found = find_knee(
            target_of(given, given.model),
            scenario,
            criterion=Criterion(given.p99_ms, given.error_share),
            start=given.start,
            precision=given.precision,
            report=_tell,
        )
    if found.by_the_client:
        note(
            "a client took its whole core at the rate that broke: raise --processes, or send from another machine"
        )
    figures = {"held": found.held, "broke": found.broke}
    kept = "" if given.no_store else _keep_knee(given, figures, [asdict(step) for step in found.steps])
    row = {"model": given.model, **figures, "by_the_client": found.by_the_client, "run": kept}
    table(given.output, _KNEE, [row])
    return 0 if found.held else 1


def target_of(given: Given, model: str | None) -> Target:
    """Find what to load: the platform of the command line. Raises: NotPossible."""
    from toque.load.scenarios.target import find_target

    return find_target(os.environ | {"TOQUE_HOME": given.home}, model=model)


def keep(given: Given, name: str, run: LoadRun, *, held: bool) -> str:
    """Keep a run of load in the experiment `load`; returns its ID."""
    from toque.load.scenarios.keeping import record

    facts = {
        "scenario": run.scenario_name,
        "model": run.model,
        "shape": run.scenario.shape.kind,
        "processes": run.scenario.processes,
    }
    return record(
        given.client,
        EXPERIMENT,
        name,
        params=facts,
        metrics=run.metrics(),
        tags={"toque.load": "run", "toque.load.held": str(held).lower()},
        files={_FILE: run.model_dump_json()},
    )


@contextmanager
def telling() -> Iterator[None]:
    """Turn what `load` says to a person into an error of the command line. Raises: Failed; UsageError."""
    from toque.load.scenarios.target import NotPossible

    try:
        yield
    except NotPossible as error:
        raise Failed(str(error)) from error
    except (ValueError, FileNotFoundError) as error:
        raise UsageError(str(error)) from error


def _read(given: Given, named: str) -> LoadRun:
    """Read a run of load from a file, or from the platform by its ID. Raises: UsageError."""
    from toque.load.scenarios.keeping import read_file
    from toque.load.scenarios.result import LoadRun

    if Path(named).is_file():
        return LoadRun.model_validate_json(Path(named).read_text())
    run_of(given.client, named)
    return LoadRun.model_validate_json(read_file(given.client, named, _FILE))


def _keep_knee(given: Given, figures: Mapping[str, float], steps: list[dict[str, Any]]) -> str:
    from toque.load.scenarios.keeping import record

    return record(
        given.client,
        EXPERIMENT,
        f"knee {given.model}",
        params={"model": given.model, "rows": given.rows, "p99_ms": given.p99_ms},
        metrics={key: each for key, each in figures.items() if each < float("inf")},
        tags={"toque.load": "knee"},
        files={"knee.json": json.dumps(steps)},
    )


def _tell(step: Step) -> None:
    verdict = "held" if step.held else "broke"
    note(
        f"{step.rate:9.1f} requests/s {verdict:5}: p99 {step.p99_ms:.1f} ms, errors {step.error_share:.2%}, "
        f"{step.requests_per_s:.1f} good answers/s"
    )


_DIFFERENCES = columns("figure | before | after | change | low | high | verdict")
_KNEE = columns("model | requests/s held: held | broke | by the client: by_the_client | run")
