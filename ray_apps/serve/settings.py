"""Settings of Ray and Serve that the processes of every platform start with; on one machine they listen on loopback.

For three of their listeners there is no option. Their daemons and workers take the machine's own address, and so every
interface; the gRPC servers by which Serve's replicas reach each other take every interface, and unpickle what they get
from whoever has Ray's token; HAProxy's pages of statistics take every interface and ask for no token.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

HAPROXY = Path(__file__).resolve().parents[2] / "clusters" / "haproxy.sh"
_ONE_MACHINE = "TOQUE_ONE_MACHINE"
_EVERYWHERE, _LOOPBACK = "[::]:", "127.0.0.1:"


def serve_settings() -> dict[str, str]:
    """List the variables that put Serve behind HAProxy with throughput settings, on one machine and on many.

    Serve gives an HAProxy half a minute to start before it starts another: its five seconds end those of a busy machine.
    Ray starts its workers at niceness 15, below all else on the machine; here they serve, so they start at 0, and
    trainers lower theirs.
    """
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "toque.ray_apps.predictor.http.bypass.middlewares",
        "RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH": "toque.ray_apps.serve.haproxy_supervisor.install",
        "RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S": "1",
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",  # a manager of HAProxy that died is replaced after three
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }


NODE_LOSS = {
    "patient": {"period_ms": "4000", "timeout_ms": "2000", "failure_threshold": "14"},
    "fast": {"period_ms": "500", "timeout_ms": "1500", "failure_threshold": "3"},
}
"""How the head asks nodes whether they live. Patient: the fourteenth failure in a row is a node's death, 52 to 84 s after it
vanished, so that one that was cut off for half a minute comes back whole: the head's kernel, which sends again after twice
as long each time, does so 51 to 60 s after the cut, and not before. Fast: the third, after 6 to 8 s; a node that stalls for
5 s lives, and one that is cut off for longer has to be started again."""


GONE_PEER_MS = 10_000
"""How long a node's connection to its head may leave what it sent unacknowledged. The kernel asks a machine that lost its
power ever more seldom, so that a connection of before finds out up to 50 s after the head is back, and its process hears
nothing of the head until then. The head itself is patient: a node that was cut off for half a minute comes back whole."""


def cluster_settings(node_loss: str, *, is_head: bool) -> dict[str, str]:
    """List the variables of every node of a cluster: when it counts as lost, and how long it waits for its head.

    node_loss: a key of `NODE_LOSS`. A node waits an hour for its head: by default all of them end when it is away for a
    minute. HAProxy asks each replica every two seconds; Serve's controller decides four times a second: ten times, its
    default, cost an idle head twice the processor time. A replica that is to end answers until no HAProxy has
    asked for its health for ten seconds (`deregistration`): Serve's thirty are for balancers outside. A controller that
    starts kills replicas that have not answered it for two minutes, by default for half of one, though they answer requests.
    """
    return {
        "RAY_health_check_initial_delay_ms": "5000",
        **{f"RAY_health_check_{name}": value for name, value in NODE_LOSS[node_loss].items()},
        "RAY_gcs_rpc_server_reconnect_timeout_s": "3600",
        **({} if is_head else {"RAY_grpc_client_keepalive_timeout_ms": str(GONE_PEER_MS)}),
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",
        "RAY_SERVE_SLOW_STARTUP_WARNING_S": "120",
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "2s",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "10",
        "RAY_START_HOOK": "toque.ray_apps.local.start_hook.without_client_server",
    }


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
    from toque.clusters.ray_private import ray_constants  # late: Ray must see the variables first, if it can

    ray_constants.ENABLE_RAY_CLUSTER = False


def bind_to_loopback(environment: Mapping[str, str]) -> None:
    """Bind this replica's own gRPC server to loopback on a platform of one machine; call it before the replica is ready."""
    if environment.get(_ONE_MACHINE) != "1":
        return
    from toque.clusters.ray_private import replica  # late: only replicas need it, and have it imported

    bind = replica.add_port_to_grpc_server
    if not isinstance(bind, _OnLoopback):
        replica.add_port_to_grpc_server = _OnLoopback(bind)


class _OnLoopback:
    """Stands for Ray's function of the same arguments, and replaces the address."""

    def __init__(self, bind: Any) -> None:
        self._bind = bind

    def __call__(self, server: Any, address: str) -> Any:
        return self._bind(server, address.replace(_EVERYWHERE, _LOOPBACK))
