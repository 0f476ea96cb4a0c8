"""Tells the cluster which node types its autoscaler may start, which Ray keeps to the autoscaler itself.

Work that finds no room asks for them: it waits for what a type could hold, and is refused at once what none could.
Run as `python -m toque.ray_apps.deployment.node_types FILE HOST:PORT`, with the environment of the node's processes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

OPTION = "--autoscaling-config"


def autoscaling_file(arguments: Sequence[str]) -> Path | None:
    """Find the autoscaler's file among the arguments of `ray start`; None without one."""
    for at, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == OPTION:
            return Path(value or arguments[at + 1]).expanduser()
    return None


def node_groups(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the types of an autoscaler's file as Ray's GCS has them; none unless all say their resources.

    A type's `max_workers` is by default that of the whole cluster, which also bounds it. The head is no such type.
    """
    most = int(config.get("max_workers", 0))
    types = {
        name: each
        for name, each in config["available_node_types"].items()
        if name != config.get("head_node_type")
    }
    if not all(each.get("resources") for each in types.values()):
        return []  # its provider finds them out
    return [
        {
            "name": name,
            "resources": {kind: int(amount) for kind, amount in each["resources"].items()},
            "min_count": int(each.get("min_workers", 0)),
            "max_count": min(int(each.get("max_workers", most)), most),
        }
        for name, each in types.items()
    ]


def report_node_types(file: Path, gcs_address: str) -> int:
    """Report the types of an autoscaler's file to the GCS at an address; returns how many there are."""
    from toque.clusters.ray_private import GcsClient, autoscaler_pb2  # late: it loads Ray

    groups = node_groups(yaml.safe_load(file.read_text()))
    if groups:
        GcsClient(address=gcs_address).report_cluster_config(
            autoscaler_pb2.ClusterConfig(node_group_configs=groups).SerializeToString()
        )
    return len(groups)


if __name__ == "__main__":
    report_node_types(Path(sys.argv[1]), sys.argv[2])
