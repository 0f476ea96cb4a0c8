"""Runs the attacks on a running platform; exit code 1 if one of them did something.

Target and an admin's token come from TOQUE_URL and TOQUE_TOKEN; without them, from what `toque up` left in `.toque`.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Annotated

from toque.load.attacks import functions, http
from toque.load.attacks import grpc as by_grpc
from toque.load.attacks.garbage import garbage
from toque.load.attacks.target import Finding, Target
from toque.load.benchmarks.harness import NotPossible, main, say
from toque.load.scenarios.target import find_target


def run(
    only: Annotated[tuple[str, ...], "names of attacks (default: all)"] = (),
    *,
    url: Annotated[str | None, "address of the HTTP door (default: TOQUE_URL)"] = None,
    grpc: Annotated[str | None, "HOST:PORT of the gRPC door (default: of what runs here)"] = None,
    model: Annotated[str | None, "a served model, for the honest caller"] = None,
    minutes: Annotated[float, "throw garbage for so long as well"] = 0,
) -> bool:
    """Run the attacks that were asked for; returns whether all came to nothing. Raises: NotPossible."""
    door = find_target(os.environ, url=url, model=model)
    grpc_address = grpc or _grpc_address(Path(os.environ.get("TOQUE_HOME", ".toque")))
    target = Target(door.url, grpc_address, door.token or "", door.model)
    attacks = {**functions.ATTACKS, **http.ATTACKS, **by_grpc.ATTACKS}
    if unknown := sorted(set(only) - set(attacks)):
        raise NotPossible(f"no attack {unknown}; there are {sorted(attacks)}")
    passed = [_report(asyncio.run(attacks[name](target))) for name in only or attacks]
    if minutes:
        passed.append(_report(garbage(target, minutes)))
    return all(passed)


def _grpc_address(home: Path) -> str | None:
    """Read where the platform that `toque up` started here speaks gRPC; None if it is not known."""
    try:
        running = json.loads((home / "up.json").read_text())
    except FileNotFoundError:
        return None
    return f"{running['settings']['host']}:{running['ports']['grpc']}"


def _report(finding: Finding) -> bool:
    say(f"{'held' if finding.bounded else 'BROKEN':7}{finding.name}: {finding.details}")
    return finding.bounded


if __name__ == "__main__":
    main(run)
