"""Runs the attacks on a running platform; exit code 1 if one of them did something.

Target and an admin's token come from TOQUE_URL and TOQUE_TOKEN; without them, from what `toque up` left in `.toque`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from toque.load.attacks import functions, grpc, http
from toque.load.attacks.garbage import garbage
from toque.load.attacks.target import Attacks, Finding, Target
from toque.load.scenarios.target import NotPossible, find_target


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the attacks that were asked for, and print what came of each."""
    chosen = _parser().parse_args(arguments)
    try:
        found_target = find_target(os.environ, url=chosen.url, model=chosen.model)
    except NotPossible as error:
        print(f"attacks: {error}", file=sys.stderr)
        return 2
    grpc_address = chosen.grpc or _grpc_address(Path(os.environ.get("TOQUE_HOME", ".toque")))
    target = Target(found_target.url, grpc_address, found_target.token or "", found_target.model)
    known = every_attack()
    unknown = sorted(set(chosen.only) - set(known))
    if unknown:
        print(f"attacks: no attack {unknown}; there are {sorted(known)}", file=sys.stderr)
        return 2
    found = [asyncio.run(_tried(name, target, known)) for name in chosen.only or known]
    if chosen.minutes:
        found.append(garbage(target, chosen.minutes))
        _print(found[-1])
    return 0 if all(finding.bounded for finding in found) else 1


def every_attack() -> Attacks:
    """All attacks by name, in the order in which they run."""
    return {**functions.ATTACKS, **http.ATTACKS, **grpc.ATTACKS}


async def _tried(name: str, target: Target, known: Attacks) -> Finding:
    finding = await known[name](target)
    _print(finding)
    return finding


def _grpc_address(home: Path) -> str | None:
    """Read where the platform that `toque up` started here speaks gRPC; None if it is not known."""
    try:
        running = json.loads((home / "up.json").read_text())
    except FileNotFoundError:
        return None
    return f"{running['settings']['host']}:{running['ports']['grpc']}"


def _print(finding: Finding) -> None:
    print(f"{'held' if finding.bounded else 'BROKEN':7}{finding.name}: {finding.details}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m toque.load.attacks", description=__doc__)
    parser.add_argument("--url", help="address of the HTTP door (default: TOQUE_URL)")
    parser.add_argument(
        "--grpc", metavar="HOST:PORT", help="address of the gRPC door (default: of what runs here)"
    )
    parser.add_argument("--model", help="a served model, for the honest caller")
    parser.add_argument("--minutes", type=float, default=0, help="throw garbage for so long as well")
    parser.add_argument("only", nargs="*", help="names of attacks (default: all)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
