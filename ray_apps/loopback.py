"""Keeps what Ray and Serve listen on at loopback, where a platform is one machine.

For three of their listeners there is no option. Their daemons and workers take the machine's own address, and so every
interface; the gRPC servers by which Serve's replicas reach each other take every interface, and unpickle what they get
from whoever has Ray's token; HAProxy's pages of statistics take every interface and ask for no token.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from toque.ray_apps.deployment.serve_settings import HAPROXY

_ONE_MACHINE = "TOQUE_ONE_MACHINE"
_EVERYWHERE, _LOOPBACK = "[::]:", "127.0.0.1:"


def loopback_environment() -> dict[str, str]:
    """List the variables of a cluster's processes, drivers included, that keep its ports on loopback.

    `ray start` turns the address 127.0.0.1 into the machine's own unless it is told that no other machine will join;
    the variable for that was made for other systems, and acts on Linux too.
    """
    return {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(HAPROXY),
        _ONE_MACHINE: "1",
    }


def stay_on_loopback() -> None:
    """Tell this process's Ray that no other machine joins, also if it was imported before the variables were set."""
    constants: Any = import_module(
        "ray._private.ray_constants"
    )  # late: Ray must see the variables first, if it can
    constants.ENABLE_RAY_CLUSTER = False


def bind_to_loopback(environment: Mapping[str, str]) -> None:
    """Bind this replica's own gRPC server to loopback on a platform of one machine; call it before the replica is ready."""
    if environment.get(_ONE_MACHINE) != "1":
        return
    replica: Any = import_module(
        "ray.serve._private.replica"
    )  # late: only replicas need it, and have it imported
    bind = replica.add_port_to_grpc_server
    if not isinstance(bind, _OnLoopback):
        replica.add_port_to_grpc_server = _OnLoopback(bind)


class _OnLoopback:
    """Stands for Ray's function of the same arguments, and replaces the address."""

    def __init__(self, bind: Any) -> None:
        self._bind = bind

    def __call__(self, server: Any, address: str) -> Any:
        return self._bind(server, address.replace(_EVERYWHERE, _LOOPBACK))
