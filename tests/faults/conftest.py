"""Redis of the matrix, and the line that says how many cells were run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.templates import use_redis
from tests.redis_server import running_redis

_cells: dict[str, tuple[int, int]] = {}


@pytest.fixture(scope="session")
def matrix_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        use_redis(server.url)
        yield


@pytest.fixture
def cells() -> dict[str, tuple[int, int]]:
    """For each verb how many cells were run, and how many it has."""
    return _cells


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _cells:
        run, whole = (sum(counts) for counts in zip(*_cells.values(), strict=True))
        terminalreporter.write_line(f"fault matrix: {len(_cells)} verbs, {run} of {whole} cells were run")
