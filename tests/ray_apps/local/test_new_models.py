"""A platform that runs takes up models that were declared since it started, and says which of its code is older."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from toque.ray_apps.local import RunningPlatform, Settings, lifecycle, up
from toque.ray_apps.local.lifecycle import code_of
from toque.ray_apps.local.state_file import boot_id, find_platform


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunningPlatform:
    settings = Settings(home=tmp_path / "home", project="shop")
    settings.home.mkdir()
    recorded = RunningPlatform(
        settings=settings,
        boot=boot_id(),
        ports=settings.ports,
        redis_url="redis://127.0.0.1:6389",
        run_folder=tmp_path / "run",
        models=("old",),
    ).save()
    monkeypatch.setattr(lifecycle, "status", lambda _: SimpleNamespace(healthy=True))
    monkeypatch.setattr(lifecycle, "connect", lambda _: "")
    return recorded


@pytest.mark.parametrize(
    ("declared", "added"), [(("old",), []), (("new", "old"), [("old", "new")]), ((), [])]
)
def test_up_again_serves_the_models_that_are_new(
    running: RunningPlatform, monkeypatch: pytest.MonkeyPatch, declared: tuple[str, ...], added: list[Any]
) -> None:
    deployed: list[Any] = []
    monkeypatch.setattr(lifecycle, "models_of", lambda _: declared)
    monkeypatch.setattr(
        lifecycle, "deploy_models", lambda now, names: deployed.append((*now.models[:1], *names))
    )
    up(running.settings)
    assert deployed == added
    kept = find_platform(running.settings.home)
    assert kept is not None
    assert set(kept.models) == {"old", *declared}


def test_a_model_that_could_not_be_served_is_tried_again_by_the_next(
    running: RunningPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "models_of", lambda _: ("old", "new"))
    monkeypatch.setattr(lifecycle, "deploy_models", _fail)
    with pytest.raises(RuntimeError):
        up(running.settings)
    kept = find_platform(running.settings.home)
    assert kept is not None
    assert kept.models == ("old",)


def _edit(folder: Path) -> None:
    (folder / "features.py").write_text("AREA = 2\n")


def _touch(folder: Path) -> None:
    (folder / "features.py").touch()


def _add(folder: Path) -> None:
    (folder / "own" / "late.py").write_text("")


def _remove(folder: Path) -> None:
    (folder / "own" / "functions.py").unlink()


def _note(folder: Path) -> None:
    (folder / "notes.txt").write_text("later")


@pytest.mark.parametrize(
    ("change", "named"),
    [(_edit, "features.py"), (_add, "late.py"), (_remove, "functions.py"), (_touch, ""), (_note, "")],
)
@pytest.mark.parametrize("workspaces", [False, True])
def test_up_again_says_that_it_runs_older_code(
    running: RunningPlatform,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    named: str,
    *,
    workspaces: bool,
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("shop_of_code", "shop_of_code2"):  # a look-alike that does not change
        (tmp_path / name / "own").mkdir(parents=True)
        for file in ("__init__.py", "features.py", "own/functions.py"):
            (tmp_path / name / file).write_text("raise RuntimeError('nobody imports it')\n")
    project = "a=shop_of_code2,b=shop_of_code" if workspaces else "shop_of_code"
    settings = running.settings.model_copy(update={"project": project})
    running.model_copy(update={"settings": settings, "code": code_of(project)}).save()
    monkeypatch.setattr(lifecycle, "models_of", lambda _: ("old",))
    change(tmp_path / "shop_of_code")
    steps: list[str] = []
    up(settings, report=steps.append)
    notes = [step for step in steps if "`toque down` and `toque up`" in step]
    assert [f"changed since: {named};" in note for note in notes] == ([True] if named else [])


def test_to_look_at_the_code_imports_neither_it_nor_ray(tmp_path: Path) -> None:
    (tmp_path / "teams" / "base").mkdir(parents=True)
    for file in ("__init__.py", "base/__init__.py", "alone.py", "other.py"):
        (tmp_path / "teams" / file).write_text("raise RuntimeError('imported')\n")
    asked = (
        "import sys; import toque.ray_apps.local; from toque.ray_apps.local.lifecycle import code_of\n"
        "print(*sorted(path.split('/teams/')[1] for path in code_of('teams.base,b=teams.alone,c=none.such')))\n"
        "print('ray' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[3]}"}
    said = subprocess.run(
        [sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.split("\n")[:2] == ["alone.py base/__init__.py", "False"]


def test_a_platform_of_an_earlier_release_recorded_no_code(
    running: RunningPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "models_of", lambda _: ("old",))
    steps: list[str] = []
    up(running.settings, report=steps.append)
    assert steps == ["already up"]


def _fail(*_: Any) -> None:
    raise RuntimeError("no champion")
