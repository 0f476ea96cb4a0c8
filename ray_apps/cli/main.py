"""Reads a command line, runs one command, turns its error into a message and an exit code.

Exit codes: 0 well; 1 the platform or the function failed; 2 the request was wrong; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from pydantic import ValidationError

from ray_apps.cli.client import Refused, Unreachable
from ray_apps.cli.command import INTERRUPTED, UsageError
from ray_apps.cli.commands import access, calls, features, ledger, machine, models, predict, runs, traffic
from ray_apps.cli.commands import monitoring as inspector
from ray_apps.cli.output import complain
from ray_apps.local.errors import LocalError

FAILED, WRONG = 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    given = parser().parse_args(arguments)
    try:
        code: int = given.command(given)
    except Refused as error:
        complain(str(error))
        return WRONG if error.callers_fault else FAILED
    except (ValidationError, UsageError) as error:
        complain(str(error))
        return WRONG
    except (Unreachable, LocalError) as error:
        complain(str(error))
        return FAILED
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def parser() -> argparse.ArgumentParser:
    """The commands there are."""
    made = argparse.ArgumentParser(
        prog="toque", description="An AI platform made of small serverless functions."
    )
    made.add_argument(
        "--home", default=os.environ.get("TOQUE_HOME") or ".toque", help="state folder (default: %(default)s)"
    )
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    for room in (machine, calls, ledger, models, traffic, runs, features, inspector, predict, access):
        room.register(commands)
    return made
