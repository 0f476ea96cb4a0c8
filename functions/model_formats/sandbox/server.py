"""The process that loads models first: forks a child for each, confines it, and reports how it ended.

It reads no file of a model itself, so its children begin clean. A library takes seconds to import: it is imported here,
once, before the fork. The process ends with the one that started it, and when it was not needed for a minute.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import select
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from toque.functions.model_formats.errors import ArtifactRefused
from toque.functions.model_formats.formats import PYTHON_MODEL
from toque.functions.model_formats.load import check_example, load
from toque.functions.model_formats.sandbox.files import restrict_files
from toque.functions.model_formats.sandbox.limits import FILES, RESOURCES, SYSTEM_CALLS, limit_resources
from toque.functions.model_formats.sandbox.messages import LoadRequest, Verdict, import_all
from toque.functions.model_formats.sandbox.system_calls import forbid_system_calls

IDLE_S = 60.0
MAX_ANSWER = 1 << 14
MAX_REASON = 2_000
_END_WITH_PARENT = 1
_PIPE = 3


def serve() -> None:
    """Answer requests from standard input on standard output, until it closes or none comes for a minute."""
    asked, answers = os.dup(0), os.dup(1)
    os.dup2(2, 1)  # what libraries print goes where errors go, not into our answers
    import_all(sys.argv[1:])
    with os.fdopen(asked, "rb") as requests, os.fdopen(answers, "wb") as out:
        while select.select([requests], [], [], IDLE_S)[0]:
            line = requests.readline()
            if not line:
                return
            out.write(_answer(LoadRequest.model_validate_json(line)).model_dump_json().encode() + b"\n")
            out.flush()


def _answer(request: LoadRequest) -> Verdict:
    import_all(request.modules)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _load_and_exit(request, writing)
    os.close(writing)
    try:
        answer = _read(reading, time.monotonic() + request.limits.wall_s)
    finally:
        os.close(reading)
        for end in (os.killpg, os.kill):  # also before it leads a group, and what it may have started
            with suppress(ProcessLookupError):
                end(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
    if answer is None:
        return Verdict(reason=f"it took longer than wall_s={request.limits.wall_s:g}")
    with suppress(ValueError):  # the child's words may be a model's: they are checked, and never unpickled
        return Verdict.model_validate_json(answer)
    return Verdict(reason=_death(status, usage.ru_utime + usage.ru_stime, request))


def _death(status: int, used_s: float, request: LoadRequest) -> str:
    if used_s >= request.limits.cpu_s - 0.5:
        return f"it used more than cpu_s={request.limits.cpu_s} on a processor"
    how = (
        f"signal {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else f"status {status}"
    )
    return f"it ended the process that loaded it, by {how}"


def _read(pipe: int, until: float) -> bytes | None:
    """What a child wrote before it ended, or None if it still runs at `until`."""
    parts: list[bytes] = []
    while select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
        part = os.read(pipe, MAX_ANSWER)
        if not part or sum(map(len, parts)) > MAX_ANSWER:
            return b"".join(parts)
        parts.append(part)
    return None


def _load_and_exit(request: LoadRequest, pipe: int) -> NoReturn:
    """Load the files in this child, which was forked for it and ends here whatever happens."""
    tempfile.tempdir = "/nonexistent"  # libraries that only ask for its name must not look for a writable one
    held: tuple[str, ...] = ()
    reason: str | None = None
    try:
        pipe = _keep_only(pipe)
        _import_project(request.folder)
        held = _confine(request)
        model = load(request.folder, signature=request.signature, trusted_types=request.trusted_types)
        check_example(model)
    except MemoryError:
        reason = "it needs more memory than memory_bytes"
    except BaseException as error:  # noqa: BLE001 - whatever it is, this process ends
        reason = f"{error}"[:MAX_REASON] or type(error).__name__
    try:
        os.write(pipe, json.dumps({"reason": reason, "held": held}).encode())
    finally:
        os._exit(0)


def _keep_only(pipe: int) -> int:
    """End with the parent, and close every descriptor but the pipe; nothing that a library prints is seen."""
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    if pipe != _PIPE:
        os.dup2(pipe, _PIPE)
    os.closerange(_PIPE + 1, os.sysconf("SC_OPEN_MAX"))
    return _PIPE


def _import_project(folder: Path) -> None:
    """Import the project whose class reads the files: trusted code, which may read what it needs to begin."""
    project = os.environ.get("TOQUE_PROJECT")
    if project and (folder / PYTHON_MODEL).is_file():
        try:
            importlib.import_module(project)
        except Exception as error:
            raise ArtifactRefused(
                f"TOQUE_PROJECT={project!r} cannot be imported where few variables of the environment are: {error!r}"
            ) from error


def _confine(request: LoadRequest) -> tuple[str, ...]:
    """Take away what a load does not need; returns what the kernel holds to."""
    limit_resources(request.limits)
    held = [RESOURCES]
    if restrict_files(request.folder):
        held.append(FILES)
    if forbid_system_calls():
        held.append(SYSTEM_CALLS)
    return tuple(held)


if __name__ == "__main__":
    serve()
    os._exit(0)  # libraries complain when an interpreter that imported them ends
