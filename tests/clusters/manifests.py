"""Renders the manifests of `clusters/kubernetes` by kustomize and checks each against the schema of its kind."""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.clusters.files import FOLDER

SCHEMAS = Path(__file__).parent / "schemas"
FOLDERS = ["base", "overlays/eks", "overlays/dev"]
Manifest = dict[str, Any]


@cache
def render(folder: str) -> tuple[Manifest, ...]:
    """Render a kustomization. Without kustomize the test is skipped."""
    command = next(
        (each for each in (["kustomize", "build"], ["kubectl", "kustomize"]) if shutil.which(each[0])), None
    )
    if command is None:
        pytest.skip("needs kustomize or kubectl on the path (Debian: apt-get install kustomize)")
    done = subprocess.run(
        [*command, str(FOLDER / "kubernetes" / folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def problems(manifest: Manifest) -> list[str]:
    """List what the API server would refuse of a manifest, fields that no schema names included."""
    validator = Draft202012Validator(_schema(f"{manifest['apiVersion']}/{manifest['kind']}"))
    return [f"{each.json_path}: {each.message}" for each in validator.iter_errors(manifest)]


@cache
def _schema(kind: str) -> dict[str, Any]:
    if kind == "ray.io/v1/RayCluster":
        found: dict[str, Any] = json.loads((SCHEMAS / "raycluster.json").read_text())
        return found
    schemas = json.loads((SCHEMAS / "kubernetes.json").read_text())
    if kind not in schemas["kinds"]:
        raise LookupError(f"no schema of {kind}: add it to tests/clusters/schemas/reduce.py")
    return {"$ref": f"#/$defs/{schemas['kinds'][kind]}", "$defs": schemas["$defs"]}


def of_kind(folder: str, kind: str) -> dict[str, Manifest]:
    """Pick the manifests of one kind, by name."""
    return {each["metadata"]["name"]: each for each in render(folder) if each["kind"] == kind}


def ray_cluster(folder: str) -> Manifest:
    """Pick the spec of the Ray cluster."""
    found: Manifest = of_kind(folder, "RayCluster")["toque"]["spec"]
    return found


def groups(folder: str) -> dict[str, Manifest]:
    """Pick the groups of pods of the Ray cluster, the head among them, by name."""
    spec = ray_cluster(folder)
    return {"head": spec["headGroupSpec"]} | {each["groupName"]: each for each in spec["workerGroupSpecs"]}


def labels_of(name: str, group: Manifest) -> dict[str, str]:
    """List the labels of a group's pods, with those that KubeRay adds."""
    kind, of_group = ("head", "headgroup") if name == "head" else ("worker", name)
    own = group["template"].get("metadata", {}).get("labels", {}) | group.get("labels", {})
    return own | {"ray.io/cluster": "toque", "ray.io/node-type": kind, "ray.io/group": of_group}


def pod_specs(folder: str) -> dict[str, Manifest]:
    """Pick every pod's spec: of the Ray cluster's groups, of jobs and of stateful sets."""
    found = {name: group["template"]["spec"] for name, group in groups(folder).items()}
    for each in render(folder):
        if each["kind"] in {"Job", "StatefulSet"}:
            found[each["metadata"]["name"]] = each["spec"]["template"]["spec"]
    return found
