"""What every test may rely on."""

import atexit
import gc
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

# Threads of OpenMP that wait for each other by computing take the CPU from those that they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Ray starts its workers at niceness 15: what else computes here, such as the other parts of the suite, starves them.
os.environ.setdefault("RAY_worker_niceness", "0")
# Speed is for benchmarks. Each run tries the same examples: one that was never tried fails in `make prove`, which searches
# for new ones, and not in whatever change is tested next.
hypothesis.settings.register_profile(
    "toque", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("search", deadline=None)
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
    if read := sys.modules.get("toque.functions.runtime.context"):
        read._of_process.cache_clear()  # what it read there


@pytest.fixture(autouse=True)
def _functions_end_with_their_test() -> Iterator[None]:
    """A function that a test declares within itself may hold what cannot be pickled, or a name of the platform's; the next test must not meet it."""

    def local_functions() -> set[tuple[str, str]]:
        catalog = sys.modules.get("toque.functions.runtime.catalog")
        declared = {} if catalog is None else catalog._declared
        return {
            (name, reference)
            for name, named in declared.items()
            for reference in named
            if "<locals>" in reference
        }

    before = local_functions()
    yield
    for name, reference in local_functions() - before:
        declared = sys.modules["toque.functions.runtime.catalog"]._declared
        del declared[name][reference]
        if not declared[name]:
            del declared[name]


_TRAINING = Path(__file__).parent / "functions" / "training"


@pytest.hookimpl(trylast=True)  # after pytest has put the tests of one fixture together
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In a module what runs Ray comes last: where Ray runs functions go there, and a test that means this machine
    must not meet it. Trainings on Ray come after all else: their low priority lets the other parts of the suite go first.
    """
    modules = {path: place for place, path in enumerate(dict.fromkeys(item.path for item in items))}

    def place(item: pytest.Item) -> tuple[bool, int, bool]:
        on_ray = item.get_closest_marker("ray") is not None
        return on_ray and item.path.is_relative_to(_TRAINING), modules[item.path], on_ray

    items.sort(key=place)


gc.disable()  # what collection makes stays until the end: the suite's modules, and those of ten large libraries


def pytest_collection_finish() -> None:
    """Leave what is there by now out of the garbage collector's rounds, a fifth of the time of the tests in this process."""
    gc.freeze()
    gc.enable()


class _SharedRay:
    """The cluster in this process that consecutive modules share, since one takes five seconds to start and two to end."""

    num_cpus = 0  # none runs

    def __init__(self) -> None:
        self._environment: dict[str, str] = {}  # what Ray set for processes that are to reach the cluster

    def start(self, num_cpus: int) -> None:
        """Have a cluster of so many CPUs: never one that happens to run here."""
        import ray  # late: few modules need a cluster

        if num_cpus != self.num_cpus:
            self.end()
            assert not ray.is_initialized(), "a test left its own cluster"
            before = dict(os.environ)
            try:
                self._init(num_cpus)
            except Exception:  # noqa: BLE001 - all that Ray raises, which forks head and raylet from this process of many
                ray.shutdown()  # threads: seldom, a child never begins
                self._init(num_cpus)
            self.num_cpus = num_cpus
            self._environment = {
                name: value for name, value in os.environ.items() if before.get(name) != value
            }
        os.environ.update(self._environment)  # another module has begun since

    def _init(self, num_cpus: int) -> None:
        import ray

        ray.init(
            "local",
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
        )

    def end(self) -> None:
        if self.num_cpus:
            import ray

            ray.shutdown()
            self.num_cpus = 0


_SHARED_RAY = _SharedRay()


@pytest.fixture(scope="session")
def shared_ray() -> Callable[[int], None]:
    """Start a cluster of so many CPUs, or go on with the one of the module before."""
    return _SHARED_RAY.start


@pytest.hookimpl(trylast=True)  # after the fixtures
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """End the shared cluster before a test that does not take it."""
    if nextitem is None or not (
        "shared_ray" in getattr(nextitem, "fixturenames", ()) and nextitem.get_closest_marker("ray")
    ):
        _SHARED_RAY.end()


_STATUS = pytest.StashKey[int]()
# Why CI may leave a test out: what the machine is. That a program or package is missing is no such reason.
_OF_THE_MACHINE = re.compile(
    r"CUDA|GPU|vLLM|kernel has n|has no KMS|CPUs are not shared|may (mount|limit)|cannot be limited"
)
_left_out: list[str] = []


def _note_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and "CI" in os.environ and isinstance(report.longrepr, tuple):
        reason = str(report.longrepr[2])
        if not _OF_THE_MACHINE.search(reason):
            _left_out.append(f"{report.nodeid}: {reason}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note_skip(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note_skip(report)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _left_out:
        terminalreporter.write_line(f"left out, which CI takes for a failure: {line}", red=True)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if _left_out and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = exitstatus = pytest.ExitCode.TESTS_FAILED
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
