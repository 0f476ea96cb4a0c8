"""A full disk is told in plain words, whichever library met it and however deep; nothing else is taken for one."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake.exceptions import DeltaError

from toque.ray_apps.cli import main
from toque.ray_apps.cli.commands import project
from toque.ray_apps.cli.errors import Failed, Refused
from toque.ray_apps.cli.main import full_disk
from toque.registry import Unavailable


def behind(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


def circular() -> Exception:
    one, other = RuntimeError("one"), OSError(errno.ENOSPC, "No space left on device")
    one.__context__, other.__context__ = other, one
    return one


FULL: dict[str, Callable[[], Exception]] = {
    "python": lambda: OSError(errno.ENOSPC, "No space left on device", "/store/x"),
    "quota": lambda: OSError(errno.EDQUOT, "Disk quota exceeded"),
    "pyarrow": lambda: pa.ArrowException(
        "IOError: Error writing bytes to file. Detail: [errno 28] No space left on device"
    ),
    "rust": lambda: DeltaError("Generic LocalFileSystem error: Unable to copy: os error 28"),
    "the store": lambda: behind(Unavailable("the store does not answer"), OSError(errno.ENOSPC, "full")),
    "a command": lambda: behind(
        Failed("shop.load failed"), DeltaError("No space left on device (os error 28)")
    ),
    "several": lambda: ExceptionGroup("two", [ValueError("x"), OSError(errno.ENOSPC, "full")]),
    "circular": circular,
}
OTHER: dict[str, Callable[[], Exception]] = {
    "no right": lambda: OSError(errno.EACCES, "Permission denied"),
    "too large a file": lambda: OSError(errno.EFBIG, "File too large"),
    "no room for workers": lambda: RuntimeError("no space for 4 workers; os error"),
    "a cycle": lambda: behind(ValueError("x"), ValueError("y")),
}


@pytest.mark.parametrize("kind", FULL)
def test_a_full_disk_is_one_plain_line(
    kind: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said(FULL[kind](), tmp_path, capsys, monkeypatch) == 1
    told = capsys.readouterr().err
    assert "a disk is full" in told
    assert f"the state folder in {tmp_path / 'deep' / 'state'}: " in told
    assert "MB left" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("kind", OTHER)
def test_what_is_no_full_disk_stays_what_it_is(
    kind: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = OTHER[kind]()
    assert full_disk(error, tmp_path) is None
    with pytest.raises(type(error)):
        said(error, tmp_path, capsys, monkeypatch)


def test_the_platforms_own_full_disk_is_not_taken_for_one_here(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said(Refused(503, "No space left on device"), tmp_path, capsys, monkeypatch) == 1
    assert "a disk is full" not in capsys.readouterr().err


def said(error: Exception, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a command that ends in an error; its exit code."""

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOQUE_PROJECT", "shop")
    monkeypatch.setattr(project, "find_project_here", fail)
    monkeypatch.setattr(project, "_platform_environment", lambda _: {})
    return main(["--home", str(tmp_path / "deep" / "state"), "train"])
