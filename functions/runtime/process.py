"""Entry of a process of the platform: from here on it is seen."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from toque.clusters.telemetry import metrics, set_up
from toque.functions.runtime.context import Context, set_up_worker
from toque.functions.runtime.request_report import report_requests
from toque.functions.runtime.secret import redact
from toque.registry.errors import Forbidden
from toque.registry.store import private_folder, temporary_folder

__all__ = ["enter_process", "enter_worker", "metrics_folder"]

_logger = logging.getLogger(__name__)


def enter_process(
    role: str, *, store_url: str, environment: Mapping[str, str], redis_url: str | None = None, name: str = ""
) -> None:
    """Set up what is seen of this process: log lines, traces, series, and with Redis its requests to the store. Idempotent.

    role: which kind of process it is, like "gateway"; name: of which one of them, as for a predictor its model.
    store_url: the platform's.
    """
    named = f"{role}/{name}" if name else role
    set_up(named, environment, masks=(redact,))
    _write_series(role, store_url, environment)
    report_requests(redis_url, named)


def enter_worker(used: Context) -> None:
    """Set up what is seen of a process that runs functions within a context. Idempotent."""
    set_up_worker()
    if metrics.folder_of_process() is None:
        _write_series("function", used.platform_url, os.environ)


def _write_series(role: str, store_url: str, environment: Mapping[str, str]) -> None:
    """Write series to the node's folder; without one the process works, and is not seen."""
    try:
        metrics.keep_series(role, metrics_folder(store_url, environment))
    except (Forbidden, OSError) as error:
        _logger.warning("series of this process are lost: %s", error)


def metrics_folder(store_url: str, environment: Mapping[str, str]) -> Path:
    """Find the folder of this node's series, the same for all processes of a platform.

    By default it is in this user's temporary folder, as it belongs to the node and not to the store.
    Raises: Forbidden if another user made it first.
    """
    chosen = environment.get("TOQUE_METRICS_FOLDER")
    if chosen:
        return private_folder(Path(chosen))
    return temporary_folder(f"metrics-{hashlib.sha256(store_url.encode()).hexdigest()[:16]}")
