"""A function's digest sees what it imports only when it runs, and does not import it to see it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from functions.runtime.digest import digest_of
from functions.runtime.late_imports import late_modules
from functions.training import train_tabular

LATE = """
def bake(x):
    from {package}.oven import heat
    import numpy
    return numpy.array(heat(x))
"""


def bakery(folder: Path, *, pantry: str = "FLOUR = 1\n", neighbour: str = "") -> Path:
    """A package `bakery`: `bake` imports `oven` late, `oven` imports `pantry`; nobody imports `neighbour`."""
    package = folder / "bakery"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "oven.py").write_text("from .pantry import FLOUR\nraise RuntimeError('never imported')\n")
    (package / "pantry.py").write_text(pantry)
    (package / "neighbour.py").write_text(neighbour)
    (package / "recipe.py").write_text(LATE.format(package="bakery"))
    return folder


def digest_in(folder: Path) -> str:
    """The digest of `bakery.recipe.bake`, reckoned in a process of its own."""
    program = "from bakery.recipe import bake; from functions.runtime.digest import digest_of; print(digest_of(bake))"
    root = Path(__file__).resolve().parents[3]
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": f"{folder}:{root}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.strip()


def test_a_change_behind_a_late_import_is_another_version(tmp_path: Path) -> None:
    before = digest_in(bakery(tmp_path / "a"))
    assert digest_in(bakery(tmp_path / "b")) == before
    assert digest_in(bakery(tmp_path / "c", pantry="FLOUR = 2\n")) != before
    assert digest_in(bakery(tmp_path / "d", neighbour="X = 1\n")) == before


def test_late_modules_are_ours_only_and_transitive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(bakery(tmp_path))
    scope: dict[str, Any] = {}
    exec(compile(LATE.format(package="bakery"), "recipe.py", "exec"), scope)  # noqa: S102  # our own few lines
    assert set(late_modules(scope["bake"].__code__, "bakery")) == {"bakery.oven", "bakery.pantry"}
    assert "bakery.oven" not in sys.modules


def test_an_import_is_found_in_code_of_many_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(bakery(tmp_path))
    many = "".join(f"    name_{number}('{number}')\n" for number in range(300))
    scope: dict[str, Any] = {}
    source = f"def bake():\n{many}    from bakery.pantry import FLOUR\n"
    exec(compile(source, "recipe.py", "exec"), scope)  # noqa: S102  # our own few lines
    assert set(late_modules(scope["bake"].__code__, "bakery")) == {"bakery.pantry"}


def test_training_is_known_without_torch_and_its_digest_knows_the_loop() -> None:
    program = (
        "import sys; from functions.training import train_tabular; from functions.tuning import tune_tabular; "
        "import functions.project; train_tabular.digest; "
        "print([m for m in ('torch', 'sklearn', 'ray.train', 'ray.data', 'boto3') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
    known = late_modules(train_tabular.body.__code__, "functions.training")
    assert {
        "functions.training.loop",
        "functions.training.tabular.network",
        "functions.training.tabular.job",
    } <= set(known)
    assert len(digest_of(train_tabular.body)) == 64
