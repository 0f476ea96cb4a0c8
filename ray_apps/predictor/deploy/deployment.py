"""The predictor as Serve applications: one per model, and in each workspace a pool for the rest."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any

import orjson
from ray import serve

from toque.featurestore import FeatureStore
from toque.functions.live_counts import Tally, live_publisher
from toque.functions.prediction_log import PSEUDONYM_KEY, Pseudonyms, close_writers
from toque.functions.runtime.changes import journals_in, watch_of
from toque.functions.runtime.clock import clock_named
from toque.functions.runtime.context import context_of
from toque.functions.runtime.process import enter_process
from toque.ray_apps.admission import flush_refusals, open_admission
from toque.ray_apps.model_paths import app_name, in_workspace, pool_app, pool_prefix, route_prefix
from toque.ray_apps.predictor.deploy.dedicated import ServeDeployments
from toque.ray_apps.predictor.deploy.options import PoolOptions, PredictorOptions
from toque.ray_apps.predictor.deploy.pool import Pool, PoolSeries, connect, connect_door
from toque.ray_apps.predictor.deploy.remote import DedicatedVersions
from toque.ray_apps.predictor.deploy.replica import (
    LatencyMeter,
    TimedEndpoint,
    configure_process,
    confirmation_of,
    deployment_of,
    open_log,
    sandbox_of,
)
from toque.ray_apps.predictor.http.auth import (
    INFER,
    READ,
    WORKSPACE,
    Authenticator,
    NoAuthentication,
    TokenAuthenticator,
)
from toque.ray_apps.predictor.http.body import LargeBodies
from toque.ray_apps.predictor.http.bypass import register_bypass
from toque.ray_apps.predictor.http.endpoint import JSON, Answer, Endpoint, Request
from toque.ray_apps.predictor.http.model_endpoint import ModelEndpoint
from toque.ray_apps.predictor.inference.embedding import embed
from toque.ray_apps.predictor.inference.live import ModelSeries
from toque.ray_apps.predictor.inference.predictor import Predictor
from toque.ray_apps.predictor.inference.recording import Recorder
from toque.ray_apps.predictor.protocol.datatypes import Array
from toque.ray_apps.predictor.protocol.errors import NotFound
from toque.ray_apps.predictor.versions.engine import POLL_S, Engine, VersionLoader
from toque.ray_apps.predictor.versions.loaded import tried_first
from toque.ray_apps.serve.process import ask_another, freeze, others_answer
from toque.registry import InvalidInput, Registry, open_store
from toque.registry.access import workspace_store
from toque.registry.audit_keys import AuditKeys
from toque.registry.names import check_name
from toque.registry.store import temporary_folder

_log = logging.getLogger("ray.serve")
CHAMPION_S, ASK_S = 30.0, 5.0
"""How long a new replica tries to load its champion before it looks whether others answer, and how long it asks them."""
POOL_APP, POOL_PREFIX = pool_app(), pool_prefix()
"""The Serve application of the default workspace's pool, and its route prefix."""


def _pseudonyms(options: PredictorOptions) -> Pseudonyms | None:
    """Make the pseudonyms of a replica's log. Raises: ValueError if the secret is missing."""
    if not options.pseudonymise:
        return None
    key = context_of(os.environ).find_secret(PSEUDONYM_KEY)
    if key is None:
        raise ValueError(
            f"pseudonymise={sorted(options.pseudonymise)} needs the secret {PSEUDONYM_KEY}; "
            "set it, or put it into the folder that TOQUE_SECRETS names"
        )
    return Pseudonyms(key, options.pseudonymise)


async def _close(endpoint: Endpoint) -> None:
    """Close a replica's endpoint once its last request is answered, and write what its logs hold."""
    await endpoint.close()
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, close_writers)
    await loop.run_in_executor(None, flush_refusals)


class _ReplicaResources:
    """Resources that all models of a replica share: the workspace's store, features and log, and authentication."""

    def __init__(self, name: str, options: PredictorOptions) -> None:
        self._options = options
        enter_process(
            "predictor",
            name=name,
            store_url=options.store_url,
            environment=os.environ,
            redis_url=options.redis_url,
        )
        self._large = LargeBodies(options.max_held_bytes)
        platform = open_store(options.store_url, audit_keys=AuditKeys.of_environment(os.environ))
        self._store = workspace_store(platform, options.workspace)
        self._sandbox = sandbox_of(options.sandbox)
        self._clock = clock_named("replay" if options.replay else "system", options.redis_url)
        self._features: FeatureStore | None = None
        self._log = open_log(options)
        if options.redis_url is not None:
            self._features = FeatureStore(
                self._store, redis_url=options.redis_url, project=options.workspace, clock=self._clock
            )
        self._pseudonyms = _pseudonyms(options)
        self.auth: Authenticator = NoAuthentication(options.workspace)
        if options.authentication:
            self.auth = TokenAuthenticator(
                open_admission(platform, f"predictor/{name}", oidc=options.oidc), workspace=options.workspace
            )

    @property
    def max_in_flight(self) -> int:
        """Bound on the requests that a replica holds at once."""
        return self._options.max_ongoing_requests + max(0, self._options.max_queued_requests)

    def endpoint(
        self, model: str, *, retain: int = 2, version_loader: VersionLoader | None = None
    ) -> ModelEndpoint:
        """Make a model's HTTP endpoint, with no version loaded.

        retain: versions kept after the policy dropped them. version_loader: by default loads into this process.
        """
        from toque.ray_apps.predictor.versions.scoring import load_scorer  # late: only replicas need torch

        registry = Registry(self._store, actor=f"predictor/{model}")
        journal = journals_in(self._store, registry.follow(model).journal.path)
        watch = watch_of(self._options.redis_url, journal, every_s=self._options.poll_s)
        engine = Engine(
            model,
            registry,
            tried_first(self._sandbox.check, load_scorer),
            scratch=temporary_folder("loading"),
            watch=watch,
            retain=retain,
            version_loader=version_loader,
        )
        predictor = Predictor(
            engine,
            Recorder(
                model,
                self._log,
                pseudonyms=self._pseudonyms,
                confirmation=confirmation_of(self._log, self._options),
            ),
            features=self._features,
            clock=self._clock if self._options.replay else None,
            replay=self._options.replay,
            shadow_limit=self._options.shadow_limit,
            tally=_tally_of(model, self._options),
            series=ModelSeries(model, self._options.workspace) if self._options.metrics else None,
        )
        endpoint = ModelEndpoint(
            predictor,
            self.auth,
            max_body_bytes=self._options.max_body_bytes,
            max_in_flight=self.max_in_flight,
            large=self._large,
        )
        connect(endpoint)
        return endpoint


def _tally_of(model: str, options: PredictorOptions) -> Tally | None:
    """Make the live counts of a model; none without Redis, nor on a replayed clock, of which nobody has a minute."""
    if options.redis_url is None or options.replay:
        return None
    return live_publisher(options.redis_url).tally(options.workspace, model)


def build_predictor(model: str, options: PredictorOptions) -> ModelEndpoint:
    """Make a model's ASGI application, with its versions loaded and followed; for tests and servers without Serve.

    Raises: ValueError if its versions are to have deployments of their own.
    """
    if options.dedicated is not None:
        raise ValueError("options.dedicated needs Serve, for a version's deployment; leave it out here")
    endpoint = _ReplicaResources(model, options).endpoint(model)
    endpoint.predictor.engine.start()
    return endpoint


async def _open_endpoint(model: str, options: PredictorOptions, release: int) -> ModelEndpoint:
    """Make a model's endpoint in a replica of Serve, with the event loop free: dedicated versions are asked on it."""
    own = options.dedicated
    if own is None:
        endpoint = build_predictor(model, options)
        await _wait_for_champion(endpoint)
        return endpoint
    loop = asyncio.get_running_loop()
    deployments = ServeDeployments(model, options, own, release=release)
    dedicated = DedicatedVersions(
        deployments, loop=loop, release=release, start_timeout_s=own.start_timeout_s
    )
    endpoint = _ReplicaResources(model, options).endpoint(model, retain=1, version_loader=dedicated)
    engine = endpoint.predictor.engine
    dedicated.start(lambda: engine.loaded)
    starting = loop.run_in_executor(None, engine.start)
    # The champion comes first: a canary that finds no room must not keep it from answering.
    while engine.routes.champion is None and not starting.done():
        await asyncio.wait([starting], timeout=0.05)
    if starting.done():
        starting.result()
    await _wait_for_champion(endpoint)
    return endpoint


async def _wait_for_champion(endpoint: ModelEndpoint) -> None:
    """Wait until a new replica can answer, so that Serve keeps its predecessor until then; a model without versions is fine.

    Where no other replica has a champion, it is ready after `CHAMPION_S` all the same: it says why it cannot, and Serve gives up for good
    what fails a few times to start. It answers once it can.
    """
    loop = asyncio.get_running_loop()
    looked = loop.time()
    while (fault := endpoint.predictor.engine.find_fault()) is not None:
        if loop.time() - looked > CHAMPION_S:
            kept = await _others_predict()
            _log.warning(
                "%s; %s", fault, "its predecessors go on meanwhile" if kept else "nobody else answers"
            )
            if not kept:
                return
            looked = loop.time()
        await asyncio.sleep(POLL_S)


async def _others_predict() -> bool:
    """Whether another replica has a champion; one that runs without a champion is not waited for."""
    if not await asyncio.get_running_loop().run_in_executor(None, others_answer):
        return False
    try:
        return bool(await asyncio.wait_for(ask_another("has_champion"), ASK_S))
    except Exception as error:  # noqa: BLE001 - whatever its release or load keeps it from, it runs
        _log.warning("another replica does not say whether it has a champion: %s", error)
        return True


def build_pool(options: PoolOptions) -> PoolEndpoint:
    """Make the ASGI application of an empty pool, for tests and servers without Serve."""
    resources = _ReplicaResources("pool", options)
    pool = Pool(
        lambda model: resources.endpoint(model, retain=1),
        limit_bytes=options.memory_limit_bytes,
        pinned=options.pinned,
        poll_s=options.poll_s,
        max_waiting=max(1, resources.max_in_flight // 2),
    )
    return PoolEndpoint(pool, resources.auth, max_in_flight=resources.max_in_flight)


def _of_serve(
    endpoint: ModelEndpoint | PoolEndpoint, series: ModelSeries | None, options: PredictorOptions
) -> Endpoint:
    """Make the endpoint that Serve calls, whose responses are counted. series: of the model or the pool."""
    found = endpoint if options.max_replicas is None else TimedEndpoint(endpoint, LatencyMeter())
    found.behind_serve = True
    connect_door(found, series)
    return found


def _register_bypass(prefix: str, endpoint: Endpoint, options: PredictorOptions) -> None:
    if options.max_replicas is None:  # else Serve must count the requests, or it stops busy replicas
        register_bypass(prefix, endpoint)


@serve.ingress()
class PredictorReplica:
    """Serve deployment of one model's predictor."""

    async def __init__(self, model: str, options: dict[str, Any], release: int) -> None:  # type: ignore[misc]  # Serve awaits it
        self._model, self._options = model, PredictorOptions.model_validate(options)
        configure_process(self._options.sandbox)
        endpoint = await _open_endpoint(model, self._options, release)
        self._predictor = endpoint.predictor
        self._endpoint = _of_serve(endpoint, endpoint.predictor.series, self._options)
        freeze()

    def __serve_build_asgi_app__(self) -> Endpoint:
        """The application that Serve's HTTP server of this replica calls."""
        prefix = route_prefix(self._model, self._options.workspace)
        _register_bypass(prefix, self._endpoint, self._options)
        return self._endpoint

    async def __del__(self) -> None:
        """Close the endpoint and its log; Serve calls this before it ends the replica."""
        await _close(self._endpoint)

    async def embed(self, texts: list[str]) -> Array:
        """Vectors of texts, for the gateway's searches by text."""
        return await embed(self._predictor, texts)

    async def has_champion(self) -> bool:
        """Whether it answers predictions, as a new replica asks that cannot."""
        return self._predictor.engine.routes.champion is not None

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Metrics that Serve scales by; it asks once a second if the deployment is autoscaled."""
        return self._endpoint.autoscaling_metrics()


@serve.ingress()
class PoolReplica:
    """Serve deployment of the pool of models."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = PoolOptions.model_validate(options)
        configure_process(self._options.sandbox)
        pool = build_pool(self._options)
        self._pool_series = PoolSeries(pool.pool, self._options.workspace)
        self._series = ModelSeries("(pool)", self._options.workspace)
        self._endpoint = _of_serve(pool, self._series, self._options)
        freeze()

    def __serve_build_asgi_app__(self) -> Endpoint:
        """The application that Serve's HTTP server of this replica calls."""
        _register_bypass(pool_prefix(self._options.workspace), self._endpoint, self._options)
        return self._endpoint

    async def __del__(self) -> None:
        """Close the endpoint and its log; Serve calls this before it ends the replica."""
        await _close(self._endpoint)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Metrics that Serve scales by; it asks once a second if the deployment is autoscaled."""
        return self._endpoint.autoscaling_metrics()


def application(model: str, options: PredictorOptions | None = None) -> serve.Application:
    """Make a model's Serve application, to be run under the model's `route_prefix` in the options' workspace.

    options: by default those of this process's environment.
    """
    options = options if options is not None else PredictorOptions.from_environment(os.environ)
    name = f"predict-{in_workspace(model, options.workspace)}"
    bound = deployment_of(PredictorReplica, name, options)
    release = time.time_ns() if options.dedicated is not None else 0  # the same again is no new deploy
    application: serve.Application = bound.bind(model, options.model_dump(mode="json"), release)
    return application


def pool_application(options: PoolOptions | None = None) -> serve.Application:
    """Make a workspace's pool, a Serve application to be run under its `pool_prefix`, for every other model.

    options: by default those of this process's environment.
    """
    options = options if options is not None else PoolOptions.from_environment(os.environ)
    bound = deployment_of(PoolReplica, pool_app(options.workspace), options)
    application: serve.Application = bound.bind(options.model_dump(mode="json"))
    return application


def deploy_model(model: str, options: PredictorOptions | None = None) -> None:
    """Deploy or redeploy a model's application on the running Serve; returns when it is ready."""
    options = options if options is not None else PredictorOptions.from_environment(os.environ)
    serve.run(
        application(model, options),
        name=app_name(model, options.workspace),
        route_prefix=route_prefix(model, options.workspace),
    )


def deploy_pool(options: PoolOptions | None = None) -> None:
    """Deploy or redeploy the pool on the running Serve; returns when it is ready."""
    options = options if options is not None else PoolOptions.from_environment(os.environ)
    serve.run(
        pool_application(options),
        name=pool_app(options.workspace),
        route_prefix=pool_prefix(options.workspace),
    )


class PoolEndpoint(Endpoint):
    """An ASGI application that serves a pool's models; `GET /` describes the pool itself.

    auth: admits a request or refuses it, before anything is loaded. max_in_flight: of all models together.
    """

    def __init__(self, pool: Pool, auth: Authenticator, *, max_in_flight: int = 1_280) -> None:
        super().__init__(max_in_flight=max_in_flight)
        self.pool, self.auth = pool, auth

    async def close(self) -> None:
        """Close the pool and all its models."""
        await self.pool.close()

    def index(self) -> list[dict[str, str]]:
        """The versions of the models in memory; models without a request so far are missing."""
        return self.pool.index()

    def on_startup(self) -> None:
        """Start the pool, which loads pinned models before the first request."""
        self.pool.start()

    async def answer(self, request: Request) -> Answer:
        """Status, headers and body of the answer to one request. Raises: PredictorError."""
        path = request.path.removeprefix("/")
        name = path.partition("/")[0]
        request.admitted = await self.auth.admit(
            request.headers.get(b"authorization"),
            INFER if path.endswith("/infer") else READ,
            model=name or None,
            what=f"{request.method} {request.path}",
            client=request.client,
            workspace=request.headers.get(WORKSPACE),
        )
        self.pool.start()
        if not name:
            return 200, [JSON], orjson.dumps(self.pool.describe())
        try:
            check_name(name, what="model")
        except InvalidInput as error:
            raise NotFound(f"path: {error}") from None
        request.path = path.removeprefix(name)
        return await self.pool.answer(name, request)


__all__ = [
    "POOL_APP",
    "POOL_PREFIX",
    "PoolEndpoint",
    "app_name",
    "application",
    "build_pool",
    "build_predictor",
    "deploy_model",
    "deploy_pool",
    "pool_app",
    "pool_application",
    "pool_prefix",
    "route_prefix",
]
