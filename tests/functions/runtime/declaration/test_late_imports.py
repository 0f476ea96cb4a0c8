"""Digests include the imports inside functions, without importing them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.functions.runtime.environments.thin import thin_python
from toque.functions.training import TabularParams, train_tabular
from toque.registry.code_digest import _follow, digest_of, late_modules

ROOT = Path(__file__).parents[4]

LATE = """
def run(x):
    from {package}.late import compute
    import numpy
    return numpy.array(compute(x))
"""


def project(folder: Path, *, deep: str = "VALUE = 1\n", neighbour: str = "") -> Path:
    """Write a package `app`: `run` imports `late` inside, `late` imports `deep`; `neighbour` is not imported."""
    package = folder / "app"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "late.py").write_text("from .deep import VALUE\nraise RuntimeError('never imported')\n")
    (package / "deep.py").write_text(deep)
    (package / "neighbour.py").write_text(neighbour)
    (package / "job.py").write_text(LATE.format(package="app"))
    return folder


def digests_in(*folders: Path) -> list[str]:
    """Compute the digest of `app.job.run` of each folder, in a process of its own."""
    program = """
import os, sys
from toque.registry.code_digest import _follow, digest_of
for folder in sys.argv[1:]:
    if os.fork() == 0:
        sys.path.insert(0, folder)
        from app.job import run
        print(digest_of(run), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""
    root = Path(__file__).resolve().parents[4]
    ran = subprocess.run(
        [sys.executable, "-c", program, *map(str, folders)],
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.split()


def test_a_change_behind_a_late_import_is_another_version(tmp_path: Path) -> None:
    before, same, deeper, beside = digests_in(
        project(tmp_path / "a"),
        project(tmp_path / "b"),
        project(tmp_path / "c", deep="VALUE = 2\n"),
        project(tmp_path / "d", neighbour="X = 1\n"),
    )
    assert same == before
    assert deeper != before
    assert beside == before


def test_late_modules_are_transitive_and_of_this_project_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(project(tmp_path))
    scope: dict[str, Any] = {}
    exec(compile(LATE.format(package="app"), "job.py", "exec"), scope)  # noqa: S102  # our own few lines
    assert set(late_modules(scope["run"].__code__, "app")) == {"app.late", "app.deep"}
    assert "app.late" not in sys.modules


def test_a_late_import_is_found_in_code_with_many_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(project(tmp_path))
    many = "".join(f"    name_{number}('{number}')\n" for number in range(300))
    scope: dict[str, Any] = {}
    source = f"def run():\n{many}    from app.deep import VALUE\n"
    exec(compile(source, "job.py", "exec"), scope)  # noqa: S102  # our own few lines
    assert set(late_modules(scope["run"].__code__, "app")) == {"app.deep"}


def test_training_imports_without_torch_and_its_digest_includes_the_loop() -> None:
    program = (
        "import sys; from toque.functions.training import train_tabular; from toque.functions.tuning import tune_tabular; "
        "import toque.functions.project; train_tabular.digest; "
        "print([m for m in ('torch', 'sklearn', 'ray.train', 'ray.data', 'boto3') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
    known = late_modules(TabularParams.__call__.__code__, "toque.functions.training")
    assert {
        "toque.functions.training.loop.training_loop",
        "toque.functions.training.tabular.network",
        "toque.functions.training.tabular.job",
    } <= set(known)
    followed: dict[str, str] = {}
    _follow(train_tabular.body, followed)
    assert "module toque.functions.training.loop.training_loop" in followed
    assert len(digest_of(train_tabular.body)) == 64


def test_a_digest_is_the_same_where_an_environment_finds_its_packages_in_another_one(tmp_path: Path) -> None:
    script = "from toque.functions.training import train_recipe; print(train_recipe.digest)"
    found = [
        subprocess.run(
            [each, "-c", script],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for each in (sys.executable, thin_python(tmp_path))
    ]
    assert found[0] == found[1] != ""
