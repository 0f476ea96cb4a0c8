"""Lists the Serve applications of a platform, its own and the predictors as models are placed, and makes Serve's config.

The config is as `serve deploy`, Serve's REST API and a RayService take it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import toque
from toque.ray_apps.model_paths import qualified_name, split_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ray.serve import RunTarget

    from toque.clusters.profile import Profile, Setting
    from toque.functions.placement import Placement


BUILDERS = "toque.ray_apps.config.builders"
ROOT = Path(toque.__file__).resolve().parent
ROOMS = ("clusters", "functions", "featurestore", "kernels", "ray_apps", "registry")


@dataclass(frozen=True, slots=True)
class ApplicationSpec:
    """An application as Serve's config describes it. builder: function of `BUILDERS`; args: what it is called with."""

    name: str
    route_prefix: str | None
    builder: str
    args: dict[str, Any]

    def config(self, release: str) -> dict[str, Any]:
        """Describe the application in a Serve config. release: a new one replaces its replicas, one by one."""
        return {
            "name": self.name,
            "route_prefix": self.route_prefix,
            "import_path": f"{BUILDERS}:{self.builder}",
            "args": {**self.args, "release": release},
        }

    def target(self) -> RunTarget:
        """Build the application in this process, for Serve's Python API."""
        from ray.serve import RunTarget  # late: the processes that start Ray import this package before it

        build = getattr(import_module(BUILDERS), self.builder)
        return RunTarget(target=build(self.args), name=self.name, route_prefix=self.route_prefix)


@dataclass(frozen=True, slots=True)
class Layout:
    """How the applications are laid out over nodes.

    gateway, mlflow, ticker, streams, grpc, generative: options of each, as its builder takes them; None: not deployed. predictors: fields of
    PredictorOptions for every model; models: for one, by qualified name; pool: those of a pool for every other model of
    the default workspace, None for no such pool.
    """

    gateway: dict[str, Any] | None = field(default_factory=dict)
    mlflow: dict[str, Any] | None = field(default_factory=dict)
    ticker: dict[str, Any] | None = field(default_factory=dict)
    streams: dict[str, Any] | None = None
    grpc: dict[str, Any] | None = None
    generative: dict[str, Any] | None = None
    # By default no CPU is reserved: on a small machine training would find none left.
    predictors: dict[str, Any] = field(default_factory=lambda: {"num_cpus": 0})
    models: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    pool: dict[str, Any] | None = None


ONE_MACHINE = Layout()


def applications(models: Mapping[str, Placement], layout: Layout = ONE_MACHINE) -> list[ApplicationSpec]:
    """List the applications of a platform. models: where each is served, by qualified name."""
    from toque.ray_apps.generative import options as generative  # late: as above
    from toque.ray_apps.mlflow import ROUTE_PREFIX
    from toque.ray_apps.predictor.grpc import GRPC_APP

    own = [
        ("gateway", "/", "gateway", layout.gateway),
        ("mlflow", ROUTE_PREFIX, "mlflow", layout.mlflow),
        ("ticker", None, "ticker", layout.ticker),
        ("streams", None, "streams", layout.streams),
        (GRPC_APP, None, "grpc", layout.grpc),
        (generative.APP, generative.ROUTE_PREFIX, "generative", layout.generative),
    ]
    platform = [
        ApplicationSpec(name, prefix, builder, {"options": options})
        for name, prefix, builder, options in own
        if options is not None
    ]
    return platform + _predictors(models, layout)


def _predictors(models: Mapping[str, Placement], layout: Layout) -> list[ApplicationSpec]:
    """List the predictors, and the pools that a model is placed in."""
    from toque.ray_apps import predictor  # late: as above

    found = []
    pools: dict[str, dict[str, Any]] = {} if layout.pool is None else {"default": layout.pool}
    for name in dict.fromkeys((*models, *layout.models)):
        workspace, model = split_name(name)
        place = models.get(name)
        if place is not None and place.pool:
            pools.setdefault(workspace, {})
            continue
        options = layout.predictors | _placed(place) | layout.models.get(name, {})
        args = {"model": model, "workspace": workspace, "options": options}
        app, prefix = predictor.app_name(model, workspace), predictor.route_prefix(model, workspace)
        found.append(ApplicationSpec(app, prefix, "predictor", args))
    for workspace, own in pools.items():
        args = {"workspace": workspace, "options": layout.predictors | own}
        app, prefix = predictor.pool_app(workspace), predictor.pool_prefix(workspace)
        found.append(ApplicationSpec(app, prefix, "pool", args))
    return found


def _placed(place: Placement | None) -> dict[str, Any]:
    """List the fields of PredictorOptions that a placement says."""
    if place is None:
        return {}
    if place.dedicated:
        from toque.ray_apps.predictor import DedicatedOptions  # late: as above

        return {"dedicated": place.model_dump(include=set(DedicatedOptions.model_fields))}
    if place.min_replicas == place.max_replicas:
        return {"num_replicas": place.max_replicas}
    return place.model_dump(include={"min_replicas", "max_replicas", "target_latency_ms"})


def follows_streams(project: str | None) -> bool:
    """Whether the users' projects declare stream sources. project: as TOQUE_PROJECT says."""
    from toque.functions.runtime.context import projects_of  # late: it brings Ray in

    modules = projects_of(project or "")
    if not modules:
        return False
    from toque.featurestore import FeatureView, StreamSource  # late: as below
    from toque.functions.project import load_project

    declared = [each for module in modules.values() for each in load_project(module).features]
    sources = [each.events if isinstance(each, FeatureView) else each for each in declared]
    return any(isinstance(each, StreamSource) for each in sources)


def placements_of(project: str | None) -> dict[str, Placement]:
    """Read from the users' projects where each model is served, by qualified name. project: as TOQUE_PROJECT says."""
    from toque.functions.runtime.context import projects_of  # late: it brings Ray in

    modules = projects_of(project or "")
    if not modules:
        return {}
    from toque.functions.project import (
        load_project,  # late: the user's code is imported only if there is a project
    )

    return {
        qualified_name(name, workspace): model.placement
        for workspace, module in modules.items()
        for name, model in load_project(module).models.items()
    }


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
