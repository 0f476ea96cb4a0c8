"""The laboratory that all tests of many machines share, and the platform on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import namespaces, roles
from tests.cluster.cluster import Cluster
from tests.cluster.figures import processor_share, write_report
from tests.cluster.lab import CODE, Lab

WORKERS, BARE_S = int(os.environ.get("TOQUE_CLUSTER_WORKERS") or 2), 10
COMPARED_WITH_BARE = "test_idle.py"
REPORT = Path(os.environ.get("TOQUE_CLUSTER_REPORT") or CODE / "build" / "cluster-report.json")
FOLDER_VARIABLE = "TOQUE_CLUSTER_LAB"


@pytest.fixture(scope="session")
def _possible() -> None:
    lacks = namespaces.missing() or roles.missing()
    if lacks is not None:
        pytest.skip(lacks)


@pytest.fixture(scope="session")
def lab(_possible: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab without machines, in a folder of its own; TOQUE_CLUSTER_LAB names one that stays to be looked at."""
    folder = os.environ.get(FOLDER_VARIABLE)
    made = Lab.up(Path(folder) if folder else tmp_path_factory.mktemp("lab"))
    yield made
    made.down()


@pytest.fixture(scope="session")
def _nodes(
    lab: Lab, report: Callable[[str, dict[str, Any]], None], request: pytest.FixtureRequest
) -> Cluster:
    made = Cluster.nodes(lab, workers=WORKERS, log_mode=os.environ.get("TOQUE_LOG_MODE") or "file")
    if any(item.path.name == COMPARED_WITH_BARE for item in request.session.items):
        made.bare = processor_share(made, BARE_S)
        report("bare Ray: processor share of each node", made.bare)
    made.deploy()
    made.wait_whole()
    report("first prediction", made.timings)
    return made


@pytest.fixture
def cluster(_nodes: Cluster) -> Cluster:
    """A head and two workers with the platform on them, whole, whatever the tests before did."""
    _nodes.restore(WORKERS)
    return _nodes


@pytest.fixture(scope="session")
def report() -> Callable[[str, dict[str, Any]], None]:
    """Notes figures of a scenario in the report."""

    def note(name: str, figures: dict[str, Any]) -> None:
        write_report(REPORT, name, figures)

    return note
