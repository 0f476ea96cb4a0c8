"""Makes the config of Ray Serve for a deployment profile, as `serve deploy`, its REST API and a RayService take it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import toque
from toque.ray_apps.deployment.applications import Layout, applications

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from toque.clusters.profile import Profile, Setting
    from toque.functions.placement import Placement

ROOT = Path(toque.__file__).resolve().parent
ROOMS = ("clusters", "functions", "featurestore", "kernels", "ray_apps", "registry")


def layout_of(profile: Profile) -> Layout:
    """Lay the platform's applications out as a profile says."""
    place = profile.placement
    there = {"on_serve_nodes": place.on_serve_nodes}
    return Layout(
        gateway={"num_replicas": place.gateway} | there,
        mlflow={"num_replicas": place.mlflow} | there if place.mlflow else None,
        ticker={"num_replicas": place.ticker} | there,
        streams={"num_replicas": place.streams} | there if place.streams else None,
        generative=_generative(profile) | there if place.generative or place.generative_max else None,
        grpc={
            "url": f"http://127.0.0.1:{profile.ports.http}",  # each node's own
            "host": profile.bind,
            "port": profile.ports.grpc,
            "on_each_door": place.on_serve_nodes,
        },
        predictors=there,
        models=profile.models,
        pool={"num_replicas": place.pool} if place.pool else None,
    )


def _generative(profile: Profile) -> dict[str, Any]:
    """Options of the door of language models that say how many replicas it has."""
    place = profile.placement
    if not place.generative_max:
        return {"num_replicas": place.generative}
    return {
        "min_replicas": place.generative,
        "max_replicas": place.generative_max,
        "target_tokens": place.generative_tokens or None,
        "target_latency_ms": place.generative_first_token_ms or None,
    }


def serve_config(profile: Profile, models: Mapping[str, Placement], release: str) -> dict[str, Any]:
    """Make the config of all applications. models: where each is served, by qualified name; release: a new one replaces every replica."""
    return {
        "http_options": {"host": profile.bind, "port": profile.ports.http},
        "logging_config": {"enable_access_log": False},
        "applications": [each.config(release) for each in applications(models, layout_of(profile))],
    }


def release_of(settings: Sequence[Setting], projects: Sequence[Path] = ()) -> str:
    """Name a release: a digest of the settings, of the platform's code and of the project's.

    projects: folders, or files, of the users' definitions. Equal on every machine that has equal files.
    """
    digest = hashlib.sha256()
    for setting in settings:
        digest.update(f"{setting.name}={setting.value}\n".encode())
    for place in (*(ROOT / room for room in ROOMS), *projects):
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(f"{file.relative_to(place.parent)}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
