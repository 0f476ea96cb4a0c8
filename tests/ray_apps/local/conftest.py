import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ray_apps.local.shared_platform import SharedPlatform
from toque.ray_apps.local import processes
from toque.ray_apps.local.processes import ProcessSession


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def begin(home: Path) -> Iterator[Callable[..., ProcessSession]]:
    """Start a shell command as the platform in `home` would; processes left at the end are killed."""
    begun: list[subprocess.Popen[bytes]] = []

    def start(command: str, *, mark: bool = True) -> ProcessSession:
        environment = (
            processes.with_mark({"PATH": "/usr/bin:/bin"}, home) if mark else {"PATH": "/usr/bin:/bin"}
        )
        process = subprocess.Popen(["/bin/sh", "-c", command], env=environment, start_new_session=True)
        begun.append(process)
        return ProcessSession.led_by(process.pid)

    yield start
    processes.end(home, [ProcessSession.led_by(each.pid) for each in begun if each.poll() is None], grace_s=0)
    for each in begun:
        each.wait()


_SHARED = pytest.StashKey[SharedPlatform]()


@pytest.fixture(scope="session")
def shared(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> SharedPlatform:
    """A platform that is not up before a test asks for that; test_isolation, which leaves it up, comes before test_lifecycle."""
    pytestconfig.stash[_SHARED] = SharedPlatform(tmp_path_factory.mktemp("shared"))
    return pytestconfig.stash[_SHARED]


@pytest.hookimpl(trylast=True)  # after the fixtures
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End the shared platform before a test that does not take it."""
    shared = item.config.stash.get(_SHARED, None)
    if shared is not None and "shared" not in getattr(nextitem, "fixturenames", ()):
        shared.end()
