"""A Ray cluster that its own autoscaler grows and shrinks; its nodes are raylets of this machine (Ray's fake provider)."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

from tests.ports import free_port
from toque.ray_apps.deployment.node_types import report_node_types

MARK, NODE = "TOQUE_AUTOSCALED", "RAY_OVERRIDE_NODE_ID_FOR_TESTING"
SMALL = 80 * 2**20  # of object store: Ray's least is 75 MiB
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
QUICK = {  # a node that is lost is noticed within three seconds
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


class Autoscaled:
    """A running cluster; types: name of a node type -> its resources and its most nodes."""

    def __init__(self, folder: Path, types: dict[str, tuple[dict[str, float], int]]) -> None:
        self.mark = uuid.uuid4().hex
        self.address = f"{ray.util.get_node_ip_address()}:{free_port()}"
        config = self._file = folder / "autoscaling.yaml"
        config.write_text(yaml.safe_dump(self._config(types)))
        host, port = self.address.split(":")
        self._output = folder / "ray.log"
        self._log = self._output.open("w")
        command = f"start --head --block --node-ip-address={host} --port={port} --num-cpus=0 --num-gpus=0"
        options = f"--include-dashboard=false --object-store-memory={SMALL} --autoscaling-config={config}"
        self._head = subprocess.Popen(
            [str(Path(sys.executable).with_name("ray")), *command.split(), *options.split()],
            env=os.environ | QUICK | self._environment(),
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def _config(self, types: dict[str, tuple[dict[str, float], int]]) -> dict[str, Any]:
        given = {
            name: {
                "resources": {"object_store_memory": SMALL, **resources},
                "labels": {"ray.io/node-group": name},
                "node_config": {},
                "max_workers": most,
            }
            for name, (resources, most) in types.items()
        }
        head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        return {
            "cluster_name": "autoscaled",
            "max_workers": sum(most for _, most in types.values()),
            "idle_timeout_minutes": 0.05,
            "upscaling_speed": 100.0,
            "provider": {
                "type": "external",
                "module": PROVIDER,
                "launch_multiple": True,
                "head_node_id": FAKE_HEAD_NODE_ID,
                "gcs_address": self.address,
            },
            "available_node_types": {FAKE_HEAD_NODE_TYPE: head, **given},
            "head_node_type": FAKE_HEAD_NODE_TYPE,
            **{f"{who}setup_commands": [] for who in ("", "head_", "worker_")},
            **{f"{who}_start_ray_commands": [] for who in ("head", "worker")},
            "initialization_commands": [],
            "file_mounts": {},
            "cluster_synced_files": [],
            "auth": {},
        }

    def _environment(self) -> dict[str, str]:
        return {
            MARK: self.mark,
            NODE: FAKE_HEAD_NODE_ID,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        }

    def connect(self) -> None:
        """Connect once the head with all its processes says that it stays."""
        deadline = time.monotonic() + 150
        while "will now block forever" not in self._output.read_text():
            assert self._head.poll() is None, self._output.read_text()
            assert time.monotonic() < deadline, self._output.read_text()
            time.sleep(0.2)
        ray.init(self.address, log_to_driver=False, configure_logging=False)
        report_node_types(self._file, self.address)  # as `toque node start` does

    def nodes(self) -> dict[str, str]:
        """Ids of the nodes beside the head that are alive, with their types."""
        return {
            node["NodeID"]: node["Labels"]["ray.io/node-group"]
            for node in ray.nodes()
            if node["Alive"] and node["NodeID"] != FAKE_HEAD_NODE_ID
        }

    def until(self, holds: Callable[[dict[str, str]], bool], within_s: float = 150) -> dict[str, str]:
        """Wait until `nodes` are as asked."""
        deadline = time.monotonic() + within_s
        while not holds(nodes := self.nodes()):
            assert time.monotonic() < deadline, nodes
            time.sleep(0.2)
        return nodes

    def lose(self, node: str) -> None:
        """Kill all of a node at once, as a power cut does."""
        for pid in self._processes(NODE, node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        for pid in self._processes(MARK, self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._head.wait()
        self._log.close()

    def _processes(self, name: str, value: str) -> list[int]:
        """Processes of this cluster, by a variable that they inherited."""
        found = []
        for file in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                given = file.read_bytes().split(b"\0")
                if f"{MARK}={self.mark}".encode() in given and f"{name}={value}".encode() in given:
                    found.append(int(file.parent.name))
        return found


def answer_once() -> str:
    """Serve a deployment that has no replica while nobody asks, and ask it; returns the node that answered."""
    from ray import serve

    class Answers:
        def __call__(self) -> str:
            node: str = ray.get_runtime_context().get_node_id()
            return node

    deployment: Any = serve.deployment(
        Answers,
        name="Answers",
        max_ongoing_requests=1,
        ray_actor_options={"num_cpus": 1, "resources": {"serve": 0.001}},
        autoscaling_config={
            "min_replicas": 0,
            "max_replicas": 1,
            "metrics_interval_s": 0.5,
            "look_back_period_s": 2,
            "upscale_delay_s": 0,
            "downscale_delay_s": 2,
            "downscale_to_zero_delay_s": 2,
        },
    )
    serve.start(proxy_location="Disabled")
    handle = serve.run(deployment.bind(), name="answers", route_prefix=None)
    return str(handle.remote().result(timeout_s=150))


@contextlib.contextmanager
def autoscaled(folder: Path, types: dict[str, tuple[dict[str, float], int]]) -> Iterator[Autoscaled]:
    """Run a cluster without a node beside its head, which runs no work, and connect to it."""
    cluster = Autoscaled(folder, types)
    try:
        cluster.connect()
        yield cluster
    finally:
        ray.shutdown()
        cluster.stop()
