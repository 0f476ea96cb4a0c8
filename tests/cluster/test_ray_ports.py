"""Ray's ports ask everybody for its token, and with `RAY_USE_TLS` for a certificate, too."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.certificates import write_certificates
from tests.cluster.cluster import Cluster
from tests.cluster.lab import Lab

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

GCS, CLIENT, DASHBOARD, AGENT, ENVIRONMENTS = 6379, 10001, 8265, 52365, 8079
ASKED_OF_GCS = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"
ASKED_OF_RAYLET = "/ray.rpc.NodeManagerService/GetNodeStats"
ASKED_OF_AGENT = "/ray.rpc.ReporterService/GetTraceback"
ASKED_OF_OBJECTS = "/ray.rpc.ObjectManagerService/Pull"
NODES = """
import json, ray
ray.init("auto", logging_level="ERROR", log_to_driver=False)
where = ray.remote(num_cpus=1)(lambda: ray.util.get_node_ip_address())
ports = {each["NodeManagerAddress"]: each["NodeManagerPort"] for each in ray.nodes() if each["Alive"]}
print(json.dumps([ports, ray.get(where.remote(), timeout=120)]))
"""


@pytest.fixture
def keys() -> Iterator[Path]:
    """Folder for certificates that every machine can read: each has its own /tmp and /dev/shm."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:  # as said
        yield Path(folder) / "tls"


@pytest.fixture
def with_tls(_possible: None, tmp_path: Path, keys: Path) -> Iterator[Cluster]:
    """Nodes whose Ray speaks TLS, started as any others; nothing is deployed."""
    made = Lab.up(tmp_path / "lab")
    made.environment |= write_certificates(keys)
    yield Cluster.nodes(made, workers=1)
    made.down()


def raylets(cluster: Cluster) -> dict[str, int]:
    """Ports of the nodes' raylets by address, read by a program on the head that also runs a task on a worker."""
    ports, ran_on = json.loads(cluster.lab.run("head", "python", "-c", NODES).splitlines()[-1])
    assert ran_on in {cluster.lab.address(each) for each in cluster.workers}
    found: dict[str, int] = ports
    return found


def said_to_stranger(cluster: Cluster, machine: str, folder: str, *asked: str) -> dict[str, list[str]]:
    """What ports say to a process on a machine that has no token."""
    command = ("python", "-m", "tests.cluster.stranger", folder, *asked)
    found: dict[str, list[str]] = json.loads(cluster.lab.run(machine, *command).splitlines()[-1])
    return found


def grpc_ports(cluster: Cluster) -> list[str]:
    """Ports of Ray that speak gRPC, each with a method that it has."""
    head = cluster.lab.address("head")
    return [
        f"{head}:{GCS}={ASKED_OF_GCS}",
        *(f"{address}:{port}={ASKED_OF_RAYLET}" for address, port in raylets(cluster).items()),
        *(f"{address}:8078={ASKED_OF_AGENT}" for address in raylets(cluster)),
        *(f"{address}:8076={ASKED_OF_OBJECTS}" for address in raylets(cluster)),
    ]


def test_each_port_of_ray_refuses_who_has_no_token(cluster: Cluster) -> None:
    head, worker = cluster.lab.address("head"), cluster.lab.address(cluster.workers[0])
    said = said_to_stranger(cluster, "client", "-", *grpc_ports(cluster))
    assert said == {each: ["UNAUTHENTICATED"] for each in said}
    urls = [
        f"http://{worker}:{AGENT}/api/job_agent/jobs/",
        f"http://{worker}:{ENVIRONMENTS}/get_or_create_runtime_env",
    ]
    said = said_to_stranger(cluster, "client", "-", *urls)
    assert said == {each: ["401"] for each in said}
    said = said_to_stranger(cluster, "head", "-", f"http://127.0.0.1:{DASHBOARD}/api/jobs/")
    assert said == {each: ["401"] for each in said}
    shut = [f"http://{head}:{port}/" for port in (DASHBOARD, CLIENT)]  # Ray Client's server is not started
    said = said_to_stranger(cluster, "client", "-", *shut)
    assert said == {each: ["refused"] for each in said}


def test_with_tls_nodes_come_up_and_refuse_who_has_no_certificate_or_no_token(
    with_tls: Cluster, keys: Path
) -> None:
    said = said_to_stranger(with_tls, "client", str(keys), *grpc_ports(with_tls))
    assert said == {each: ["UNAVAILABLE", "UNAVAILABLE", "UNAUTHENTICATED"] for each in said}
