"""Names of Ray that are not public, all in one place: each has a test of what we expect of it in tests/clusters.

A name is looked up when it is imported from here, so that a process loads no more of Ray than it uses.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

NAMES = {
    # the head: nodes, draining, the autoscaler's state, the id of the cluster
    "GcsClient": "ray._raylet:GcsClient",
    "autoscaler_pb2": "ray.core.generated.autoscaler_pb2",
    "gcs_pb2": "ray.core.generated.gcs_pb2",
    "available_resources_per_node": "ray._private.state:available_resources_per_node",
    "cluster_state": "ray._private.state:state",
    "init_grpc_channel": "ray._private.grpc_utils:init_grpc_channel",
    # this process and its node
    "worker": "ray._private.worker",
    "ray_constants": "ray._private.ray_constants",
    "RAY_JOB_CONFIG_JSON_ENV_VAR": "ray._private.runtime_env.constants:RAY_JOB_CONFIG_JSON_ENV_VAR",
    "FunctionActorManager": "ray._private.function_manager:FunctionActorManager",
    # GPUs
    "pynvml": "ray._private.thirdparty.pynvml",
    "NvidiaGPUAcceleratorManager": "ray._private.accelerators.nvidia_gpu:NvidiaGPUAcceleratorManager",
    # Serve
    "controller": "ray.serve._private.controller",
    "haproxy": "ray.serve._private.haproxy",
    "proxy": "ray.serve._private.proxy",
    "replica": "ray.serve._private.replica",
    "serve_start": "ray.serve._private.api:serve_start",
    "HEALTHY_MESSAGE": "ray.serve._private.constants:HEALTHY_MESSAGE",
    "ReplicaState": "ray.serve._private.common:ReplicaState",
}
"""Where each name is: a module, or what is in one."""


def __getattr__(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = NAMES[name].partition(":")
    found: Any = import_module(module)
    return getattr(found, attribute) if attribute else found
