"""Settings of Ray and Serve that the processes of every platform start with."""

from __future__ import annotations

from pathlib import Path

HAPROXY = Path(__file__).resolve().parents[2] / "clusters" / "haproxy.sh"


def serve_settings() -> dict[str, str]:
    """List the variables that put Serve behind HAProxy with throughput settings, on one machine and on many.

    Ray starts its workers at niceness 15, below all else on the machine; here they serve, so they start at 0, and
    trainers lower theirs.
    """
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "ray_apps.predictor.http.bypass.middlewares",
        "RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }


def cluster_settings() -> dict[str, str]:
    """List the variables of every node of a cluster: how soon a loss is seen, and how long a node waits for its head.

    The head asks a node twice a second, and the node has a second and a half to answer; the third failure in a row is
    its death, 6 s after it vanished. A node that stalls for 5 s answers the third time. A node waits an hour for its
    head: by default all of them end when it is away for a minute. HAProxy asks each replica every two seconds; Serve
    gives an HAProxy half a minute to start before it starts another. A replica that is to end serves for another ten
    seconds, in which every HAProxy learns of it: Serve's thirty are for balancers outside.
    """
    return {
        "RAY_health_check_initial_delay_ms": "5000",
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_timeout_ms": "1500",
        "RAY_health_check_failure_threshold": "3",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "3600",
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "2s",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "10",
        "RAY_START_HOOK": "ray_apps.local.start_hook.without_client_server",
    }
