"""A node that falls silent, and comes back: what Ray had put there runs elsewhere, long before Ray gives the node up."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from toque.functions import Context, Resources, function
from toque.functions.runtime.durable import invocation as invocations

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.slow]
NEVER = {"health_check_failure_threshold": 1_000_000}  # Ray gives no node up during the test


@function(resources=Resources(num_cpus=3))
def leave_trace(folder: str, name: str) -> str:
    """Leave a trace; the first run of `held` waits for a gate."""
    with (Path(folder) / name).open("a") as traces:
        traces.write(f"{ray.get_runtime_context().get_node_id()}\n")
    first = len((Path(folder) / name).read_text().split()) == 1
    while name == "held" and first and not (Path(folder) / "gate").exists():
        time.sleep(0.1)
    return f"{name} by {ray.get_runtime_context().get_node_id()}"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    made.add_node(num_cpus=1, include_dashboard=False, _system_config=NEVER)
    ray.init(made.address, log_to_driver=False, configure_logging=False)
    yield made
    ray.shutdown()
    made.shutdown()


@contextmanager
def frozen(node: Any) -> Iterator[None]:
    """Stop a node's raylet and all its workers, as a power loss does, but for the end: they go on."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    stopped = [raylet, *raylet.children(recursive=True)]
    for each in stopped:
        each.suspend()
    try:
        yield
    finally:
        for each in stopped:
            os.kill(each.pid, signal.SIGCONT)


def test_runs_on_a_node_that_falls_silent_run_elsewhere_and_count_once(
    cluster: Cluster, used: Context, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    lost = cluster.add_node(num_cpus=6)
    executor = invocations.executor_of(used)

    def polled(holds: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: executor.poll() >= 0 and holds()

    held = leave_trace.submit(str(tmp_path), "held")
    eventually(polled((tmp_path / "held").exists), within_s=240)
    with frozen(lost):
        waits = leave_trace.submit(str(tmp_path), "waits")
        executor.poll()  # Ray has only the silent node for it
        other = cluster.add_node(num_cpus=6)
        eventually(polled(lambda: waits.status() == held.status() == "succeeded"), within_s=240)
        records = [held.record(), waits.record()]
        assert [each.lost for each in records] == [1, 0]
        assert [each.attempts for each in records] == [1, 1]
        assert held.result(5) == f"held by {other.node_id}"
        assert waits.result(5) == f"waits by {other.node_id}"
    (tmp_path / "gate").touch()
    # Both runs on the node that is back end: at the gate, or killed before, as nobody waits for them.
    eventually(lambda: ray.available_resources().get("CPU") == 13, within_s=240)
    assert [held.record(), waits.record()] == records
    assert [len((tmp_path / name).read_text().split()) for name in ("held", "waits")] == [2, 1]
