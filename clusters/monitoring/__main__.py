"""Prints the rules as a PrometheusRule for the Prometheus Operator.

python -m toque.clusters.monitoring --release kube-prometheus-stack --runbooks https://docs.internal/toque/runbooks | kubectl apply -f -
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

RULES = Path(__file__).parent / "prometheus" / "rules"


def prometheus_rule(*, release: str = "kube-prometheus-stack", runbooks: str = "") -> dict[str, Any]:
    """Gather the groups of all rule files in one manifest.

    release: the label that kube-prometheus-stack selects rules by, which is the name of its Helm release.
    runbooks: address of the folder docs/runbooks where you publish it; by default alerts name the pages' paths.
    """
    groups = [
        group for file in sorted(RULES.glob("*.yaml")) for group in yaml.safe_load(file.read_text())["groups"]
    ]
    for rule in (rule for group in groups for rule in group["rules"] if runbooks and "annotations" in rule):
        page = rule["annotations"]["runbook_url"].rpartition("/")[2]
        rule["annotations"]["runbook_url"] = f"{runbooks.rstrip('/')}/{page}"
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "toque", "namespace": "toque", "labels": {"release": release}},
        "spec": {"groups": groups},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m toque.clusters.monitoring", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--release", default="kube-prometheus-stack", help="name of the Helm release that selects rules"
    )
    parser.add_argument("--runbooks", default="", help="address at which you publish docs/runbooks")
    yaml.safe_dump(prometheus_rule(**vars(parser.parse_args())), sys.stdout, sort_keys=False, width=120)
