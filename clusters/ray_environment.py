"""Lists the variables that Ray and Serve read on every node of a cluster: doors by HAProxy, and how soon a loss is seen.

They are read by the processes that `ray start` starts, so they must be set before it, the same on all nodes.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["cluster_variables", "serve_variables"]

HAPROXY = Path(__file__).resolve().parent / "haproxy.sh"


def cluster_variables() -> dict[str, str]:
    """List the variables of `ray start` on each node of a cluster whose head keeps what it knows in Redis."""
    return {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", **serve_variables(), **_losses()}


def serve_variables() -> dict[str, str]:
    """List the variables that put Serve behind HAProxy on each node, with throughput settings.

    A replica that cannot be connected to for a second is passed over; three times in a row, and no more requests go to
    it until it answers again. Only requests that no replica has seen are sent to a second one.
    """
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(HAPROXY),
        "RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S": "1",
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "2s",
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "ray_apps.predictor.http.bypass.middlewares",
        "RAY_worker_niceness": "0",
    }


def _losses() -> dict[str, str]:
    """How soon the head calls a node dead, and how long nodes wait for a head that is away.

    A node is asked twice a second and has a second and a half to answer; the third failure in a row is its death, 5.5 to
    6 s after it vanished. One that stalls for 5 s answers the third time. Nodes wait an hour for their head: with the
    default of a minute all of them end when it is away for longer.
    """
    return {
        "RAY_health_check_initial_delay_ms": "5000",
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_timeout_ms": "1500",
        "RAY_health_check_failure_threshold": "3",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "3600",
    }
