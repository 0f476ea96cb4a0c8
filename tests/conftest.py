"""What every test may rely on."""

import atexit
import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("toque", deadline=None)  # speed is for benchmarks
hypothesis.settings.load_profile("toque")

_MEMORY, _ENOUGH_BYTES = Path("/dev/shm"), 4 * 2**30  # noqa: S108 - pytest makes a folder of its own there

if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ENOUGH_BYTES:
    # Stores sync every write; thousands of them are slow on a disk, and a process that is killed loses none in memory.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))


@pytest.fixture(scope="module", autouse=True)
def _environment_is_put_back() -> Iterator[None]:
    """A platform that a module started names itself in the environment; the next module must not meet it."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


@pytest.hookimpl(trylast=True)  # after pytest has put the tests of one fixture together
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In a module what runs Ray comes last: where Ray runs functions go there, and a test that means this machine
    must not meet it.
    """
    modules = {path: place for place, path in enumerate(dict.fromkeys(item.path for item in items))}
    items.sort(key=lambda item: (modules[item.path], item.get_closest_marker("ray") is not None))


gc.disable()  # what collection makes stays until the end: the suite's modules, and those of ten large libraries


def pytest_collection_finish() -> None:
    """Leave what is there by now out of the garbage collector's rounds, a fifth of the time of the tests in this process."""
    gc.freeze()
    gc.enable()


_STATUS = pytest.StashKey[int]()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_STATUS] = exitstatus


@pytest.hookimpl(trylast=True)  # after all has been told
def pytest_unconfigure(config: pytest.Config) -> None:
    """End without taking the interpreter apart: the native libraries of ten packages share this process, and one of
    them was seen to crash then, after every test had passed. No process of the platform has them all.
    """
    if _STATUS in config.stash:
        atexit._run_exitfuncs()  # what was started ends
        sys.stdout.flush()
        os._exit(config.stash[_STATUS])
