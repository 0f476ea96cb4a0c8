"""Entry of a process among those whose series a node keeps."""

from __future__ import annotations

import logging
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from prometheus_client import Gauge

from toque.clusters.telemetry.metrics.node import fold_dead
from toque.clusters.telemetry.metrics.values import SUFFIX, folder_of_process, write_to_files

FOLDED_FROM = 300
"""Number of files from which a process that starts folds those of dead ones, as nobody seems to read them."""
_logger = logging.getLogger(__name__)

_BUILD = Gauge(
    "toque_build_info",
    "Always 1; its labels say what runs.",
    ("version", "ray", "python"),
    multiprocess_mode="livemax",
)


def keep_series(role: str, folder: Path) -> None:
    """Write this process's series to the files of its node from now on; a second call changes nothing.

    role: which kind of process it is, like "gateway": one of few, as it is a label. folder: the node's, private.
    """
    if folder_of_process() is not None:
        return
    try:
        if sum(1 for _ in folder.glob(f"*{SUFFIX}")) > FOLDED_FROM:
            fold_dead(folder)
    except OSError as error:
        _logger.warning("series of dead processes are not folded: %s", error)
    write_to_files(folder, role)
    _BUILD.labels(_version("toque"), _version("ray"), platform.python_version()).set(1)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:  # the code came as a folder
        return "unknown"
