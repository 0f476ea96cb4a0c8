"""Reads the files of `clusters`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from toque import clusters

FOLDER = Path(clusters.__file__).resolve().parent
ROOT = FOLDER.parent
LAUNCHED = ["aws-gpu.yaml", "gcp.yaml", "on-premises.yaml", "local.yaml"]  # by `ray up`


def read(name: str) -> Any:
    """Read a YAML file of `clusters`."""
    return yaml.safe_load((FOLDER / name).read_text())
