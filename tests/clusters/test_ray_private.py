"""What we expect of names of Ray that are not public: a new release of Ray that breaks one is noticed here first."""

import ast
import inspect
from pathlib import Path

import pytest
import ray

from toque.clusters import ray_private

ROOT = Path(__file__).parents[2]
ROOMS = ("clusters", "featurestore", "functions", "load", "ray_apps", "registry")
MEMBERS = {
    "GcsClient": ("cluster_id", "drain_node", "get_all_node_info", "get_cluster_status", "get_draining_nodes", "report_cluster_config"),
    "autoscaler_pb2": ("ClusterConfig", "DrainNodeReason", "GetClusterStatusReply"),
    "gcs_pb2": ("GcsNodeInfo",),
    "cluster_state": ("get_cluster_config",),
    "worker": ("_global_node",),
    "ray_constants": ("ENABLE_RAY_CLUSTER",),
    "FunctionActorManager": ("_load_actor_class_from_gcs",),
    "pynvml": ("NVMLError", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetUUID", "nvmlInit"),
    "NvidiaGPUAcceleratorManager": ("get_current_node_accelerator_type",),
    "controller": ("HAProxyManager",),
    "haproxy": ("BackendConfig", "HAProxyApi", "HAProxyConfig", "HAProxyManager", "ServerConfig"),
    "proxy": ("ProxyActor",),
    "replica": ("Replica", "add_port_to_grpc_server"),
    "ReplicaState": ("RUNNING",),
}  # fmt: skip
TAKES = {
    "serve_start": {"http_options", "grpc_options"},
    "init_grpc_channel": {"address"},
    "available_resources_per_node": set(),
}


@pytest.mark.parametrize("name", ray_private.NAMES)
def test_a_name_is_there_with_all_that_is_used_of_it(name: str) -> None:
    found = getattr(ray_private, name)
    if name == "GcsClient":  # which hands everything on
        found = ray._raylet.InnerGcsClient
    assert not [each for each in MEMBERS.get(name, ()) if not hasattr(found, each)]
    if name in TAKES:
        assert TAKES[name] <= {*inspect.signature(found).parameters}


def test_what_serve_s_replica_and_manager_do_is_where_we_put_ours() -> None:
    replica, manager = ray_private.replica.Replica, ray_private.haproxy.HAProxyApi
    for owner, methods in {
        replica: ("_dataplane_health_check", "_drain_behind_haproxy", "_drain_ongoing_requests", "_stop_accepting_direct_ingress"),
        manager: ("_generate_config_file_internal", "_start_and_wait_for_haproxy", "start"),
    }.items():  # fmt: skip
        assert not [each for each in methods if not inspect.isfunction(getattr(owner, each, None))]
    assert "min_draining_period_s" in inspect.signature(replica._drain_behind_haproxy).parameters
    assert ray_private.haproxy.HAProxyManager.__ray_metadata__.modified_class.__ray_actor_class__


def test_nobody_else_names_what_is_private() -> None:
    elsewhere = []
    for file in (each for room in ROOMS for each in (ROOT / room).rglob("*.py")):
        if file.name == "ray_private.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            private = any(f"{name}.".startswith(("ray._", "ray.serve._", "ray.core.")) for name in names)
            elsewhere += [f"{file.relative_to(ROOT)}:{node.lineno}"] if private else []
    assert elsewhere == []


def test_another_name_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ray_private.nothing
