"""A platform that runs takes up models that were declared since it started, and no others."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_apps.local import RunningPlatform, Settings, lifecycle, up
from ray_apps.local.state_file import boot_id, find_platform


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
    monkeypatch.setattr(lifecycle.deploying, "connect", lambda _: "")
    return recorded


@pytest.mark.parametrize(
    ("declared", "added"), [(("old",), []), (("new", "old"), [("old", "new")]), ((), [])]
)
def test_up_again_serves_the_models_that_are_new(
    running: RunningPlatform, monkeypatch: pytest.MonkeyPatch, declared: tuple[str, ...], added: list[Any]
) -> None:
    deployed: list[Any] = []
    monkeypatch.setattr(lifecycle.deploying, "models_of", lambda _: declared)
    monkeypatch.setattr(
        lifecycle.deploying, "deploy_models", lambda now, names: deployed.append((*now.models[:1], *names))
    )
    up(running.settings)
    assert deployed == added
    kept = find_platform(running.settings.home)
    assert kept is not None
    assert set(kept.models) == {"old", *declared}


def test_a_model_that_could_not_be_served_is_tried_again_by_the_next(
    running: RunningPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle.deploying, "models_of", lambda _: ("old", "new"))
    monkeypatch.setattr(lifecycle.deploying, "deploy_models", _fail)
    with pytest.raises(RuntimeError):
        up(running.settings)
    kept = find_platform(running.settings.home)
    assert kept is not None
    assert kept.models == ("old",)


def _fail(*_: Any) -> None:
    raise RuntimeError("no champion")
