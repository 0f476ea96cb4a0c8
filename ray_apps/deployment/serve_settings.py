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
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }
