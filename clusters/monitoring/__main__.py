"""Prints the rules as a PrometheusRule for the Prometheus Operator: `python -m clusters.monitoring | kubectl apply -f -`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

RULES = Path(__file__).parent / "prometheus" / "rules"


def prometheus_rule() -> dict[str, Any]:
    """Gather the groups of all rule files in one manifest."""
    groups = [
        group for file in sorted(RULES.glob("*.yaml")) for group in yaml.safe_load(file.read_text())["groups"]
    ]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "toque", "namespace": "toque"},
        "spec": {"groups": groups},
    }


if __name__ == "__main__":
    yaml.safe_dump(prometheus_rule(), sys.stdout, sort_keys=False, width=120)
