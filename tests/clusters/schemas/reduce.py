"""Reduces the schemas of Kubernetes and of KubeRay to the kinds that `clusters/kubernetes` uses, without descriptions.

    git clone --depth 1 --branch v1.7.0 https://github.com/ray-project/kuberay
    git clone --depth 1 https://github.com/kubernetes-client/python
    python -m tests.clusters.schemas.reduce kuberay/ray-operator/config/crd/bases/ray.io_rayclusters.yaml \
        python/kubernetes/swagger.json.unprocessed

What comes of it is derived from those two projects, which are under the Apache License 2.0, and is under it too.
A field that the schema does not name is refused, as by `kubectl apply --validate=strict`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
KINDS = {
    ("", "ConfigMap"), ("", "Namespace"), ("", "Secret"), ("", "Service"), ("", "ServiceAccount"),
    ("apps", "StatefulSet"), ("batch", "Job"), ("networking.k8s.io", "NetworkPolicy"),
    ("policy", "PodDisruptionBudget"), ("rbac.authorization.k8s.io", "Role"),
    ("rbac.authorization.k8s.io", "RoleBinding"),
}  # fmt: skip
_KEPT = {
    "additionalProperties", "allOf", "anyOf", "enum", "items", "maximum", "maxItems", "maxLength", "minimum", "minItems",
    "minLength", "oneOf", "pattern", "properties", "required", "type",
}  # fmt: skip
_INT_OR_STRING = {"type": ["integer", "string"]}
_LOOSE = {  # what the API takes beside what its schema says
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": _INT_OR_STRING,
    "io.k8s.apimachinery.pkg.api.resource.Quantity": {"type": ["number", "string"]},
}


def main(crd: str, swagger: str) -> None:
    """Write `raycluster.json` and `kubernetes.json` beside this file."""
    _write("raycluster.json", raycluster(yaml.safe_load(Path(crd).read_text())))
    _write("kubernetes.json", kubernetes(json.loads(Path(swagger).read_text())["definitions"]))


def raycluster(crd: dict[str, Any]) -> dict[str, Any]:
    """Reduce the v1 schema of RayCluster; what head and workers have in common stands once, under `$defs`."""
    version = next(each for each in crd["spec"]["versions"] if each["name"] == "v1")
    found = strict(version["schema"]["openAPIV3Schema"])
    del found["properties"]["status"]
    spec = found["properties"]["spec"]["properties"]
    head, worker = spec["headGroupSpec"]["properties"], spec["workerGroupSpecs"]["items"]["properties"]
    if head["template"] != worker["template"]:
        raise ValueError("head and workers have pod templates of two schemas: keep both")
    found["$defs"] = {"template": head["template"]}
    head["template"] = worker["template"] = {"$ref": "#/$defs/template"}
    return found


def kubernetes(definitions: dict[str, Any]) -> dict[str, Any]:
    """Reduce the definitions to those of `KINDS` and what they refer to; `kinds` says which belongs to which."""
    kinds = {}
    for name, schema in definitions.items():
        for group in schema.get("x-kubernetes-group-version-kind", []):
            key = (group["group"], group["kind"])
            if key in KINDS and group["version"] == "v1":
                kinds["/".join(filter(None, (*key[:1], "v1", key[1])))] = name
    if len(kinds) != len(KINDS):
        raise ValueError(f"found {sorted(kinds)} of {len(KINDS)} kinds")
    reached: dict[str, Any] = {}
    wanted = list(kinds.values())
    while wanted:
        name = wanted.pop()
        if name not in reached:
            reached[name] = _LOOSE.get(name) or strict(definitions[name])
            wanted += _references(reached[name])
    return {"kinds": dict(sorted(kinds.items())), "$defs": dict(sorted(reached.items()))}


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Keep what validates of a schema, and refuse fields that it does not name."""
    if schema.get("x-kubernetes-int-or-string"):
        return _INT_OR_STRING
    if "$ref" in schema:
        return {"$ref": f"#/$defs/{schema['$ref'].rpartition('/')[2]}"}
    found: dict[str, Any] = {}
    for key in sorted(_KEPT & schema.keys()):
        value = schema[key]
        if key == "properties":
            found[key] = {name: strict(each) for name, each in sorted(value.items())}
        elif key in {"allOf", "anyOf", "oneOf"}:
            found[key] = [strict(each) for each in value]
        elif isinstance(value, dict):
            found[key] = strict(value)
        else:
            found[key] = value
    if "properties" in found and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


def _references(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"].rpartition("/")[2]
        for each in schema.values():
            yield from _references(each)
    elif isinstance(schema, list):
        for each in schema:
            yield from _references(each)


def _write(name: str, schema: dict[str, Any]) -> None:
    (HERE / name).write_text(json.dumps(schema, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
