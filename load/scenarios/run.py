"""Load test of a running platform against its objectives: `python -m toque.load.scenarios.run`, exit code 1 when one is missed.

Target and token come from TOQUE_URL and TOQUE_TOKEN; without them, from what `toque up` left in `.toque`.
Exit code 2: the load could not be put on (no server, no model, no locust).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from toque.load.scenarios.result import LoadRun
from toque.load.scenarios.scenario import Scenario, Slo
from toque.load.scenarios.sending.processes import put_load
from toque.load.scenarios.target import NotPossible, find_target

SLO = Path(__file__).parent / "slo.toml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the load and print the verdict; the exit code is 0, 1 or 2."""
    chosen = _parser().parse_args(arguments)
    try:
        name, scenario = Slo.read(chosen.slo).pick(chosen.scenario)
        target = find_target(os.environ, url=chosen.url, model=chosen.model)
        print(f"{target.model} at {target.url}: {described(scenario)}", flush=True)
        run = put_load(target, name, scenario, keys=chosen.keys)
    except (NotPossible, OSError, ValueError) as error:
        print(f"load: {error}", file=sys.stderr)
        return 2
    print("\n".join(report_lines(run)))
    if chosen.save:
        Path(chosen.save).write_text(run.model_dump_json())
    return 0 if run.held else 1


def described(scenario: Scenario) -> str:
    """Say in words what a scenario sends."""
    shape = scenario.shape
    to = f" to {shape.to_rate:g}" if hasattr(shape, "to_rate") else ""
    return (
        f"{shape.kind}, {shape.rate:g}{to} requests/s for {shape.seconds:g} s after {scenario.warm_up_s:g} s of warm-up, "
        f"{scenario.processes} process{'es' if scenario.processes > 1 else ''}"
    )


def report_lines(run: LoadRun) -> list[str]:
    """Lines that tell a person how a run went."""
    found = run.measured()
    lines = [
        f"  {count:6} x {problem}" for problem, count in sorted(run.problems.items(), key=lambda one: -one[1])
    ]
    lines.append(
        f"  {found.due} due, {found.answered} answered, {found.failed} failed, {found.dropped} dropped; "
        f"p50 {found.latency_ms(0.5):.1f} ms, p99 {found.latency_ms(0.99):.1f} ms, {found.requests_per_s:.1f} good answers/s; "
        f"sent late by {found.late_ms:.1f} ms at most"
    )
    if run.aborted:
        lines.append(f"  ABORTED after {found.seconds:.0f} s: {run.aborted}")
    for finding in run.findings():
        verdict = "held  " if finding.held else "MISSED"
        lines.append(
            f"  {verdict}  {finding.objective:16} {finding.measured:12.4g}   objective {finding.limit:g}"
        )
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m toque.load.scenarios.run", description=__doc__)
    parser.add_argument("--slo", type=Path, default=SLO, help="scenarios and objectives (TOML)")
    parser.add_argument("--scenario", help="which of them; the first, if it is left out")
    parser.add_argument("--url", help="address of the platform; TOQUE_URL otherwise")
    parser.add_argument("--model", help="model to load; TOQUE_MODEL, or the first with a champion, otherwise")
    parser.add_argument(
        "--keys", type=Path, help="JSON lines for requests by key; tensors are sent otherwise"
    )
    parser.add_argument("--save", help="file that the run is written to, for `toque load compare`")
    return parser


if __name__ == "__main__":
    sys.exit(main())
