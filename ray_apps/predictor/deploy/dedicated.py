"""A version's own deployment on Serve, how a model's endpoint deploys, holds and asks it, and the reaper that ends it.

The deployment is a Serve application without a route, as `toque.ray_apps.model_paths` names it. It alone loads the
version; the model's endpoint has the protocol, the split, the log and all else. The reaper is one actor of the cluster,
started by the first endpoint replica that needs it. It keeps nothing that endpoint replicas do not report again within
seconds, so it may die at any time: a new one gives every deployment its full linger first.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.schema import ApplicationStatus, LoggingConfig

from toque.functions.runtime.process import enter_process
from toque.ray_apps.model_paths import VERSION_PREFIX, version_app
from toque.ray_apps.predictor.deploy.options import DedicatedOptions, PredictorOptions
from toque.ray_apps.predictor.deploy.remote import DeploymentState, DeploymentStatus, RemotePredict, Reply
from toque.ray_apps.predictor.deploy.replica import LatencyMeter, configure_process, sandbox_of
from toque.ray_apps.predictor.protocol.datatypes import Array
from toque.ray_apps.predictor.protocol.errors import (
    BadRequest,
    DeviceFailed,
    NotReady,
    Overloaded,
    PredictorError,
)
from toque.ray_apps.predictor.versions.loaded import LoadedVersion, LoadError, fetch_version, tried_first
from toque.ray_apps.serve.process import freeze
from toque.ray_apps.serve.settings import bind_to_loopback
from toque.ray_apps.serve.spread import laid_out
from toque.registry import Registry, open_store
from toque.registry.access import workspace_store
from toque.registry.audit_keys import AuditKeys
from toque.registry.errors import RegistryError
from toque.registry.store import temporary_folder

CLAIM_S = 15.0

"""How long the replica that claimed a deployment is the only one to deploy it."""

LINGER_S = 60.0

"""For deployments that this reaper never heard of."""
# The previous release's name too: two reapers would not see each other's holds in an upgrade.
REAPER, NAMESPACE = "toque-keeper", "toque"
SWEEP_S = 2.0
CALL_S = 90.0

"""Timeout of a call to the reaper, which may be ending a deployment first."""
_STATES = {
    ApplicationStatus.RUNNING: DeploymentState.RUNNING,
    ApplicationStatus.UNHEALTHY: DeploymentState.RUNNING,  # Serve starts replicas again, and requests wait for them
    ApplicationStatus.DEPLOY_FAILED: DeploymentState.FAILED,
    ApplicationStatus.DELETING: DeploymentState.ENDING,
    ApplicationStatus.DEPLOYING: DeploymentState.STARTING,
}
_log = logging.getLogger("ray.serve")


class VersionReplica:
    """One replica of a dedicated version's deployment."""

    def __init__(self, model: str, number: int, options: dict[str, Any]) -> None:
        validated = PredictorOptions.model_validate(options)
        configure_process(validated.sandbox)
        enter_process("version", store_url=validated.store_url, environment=os.environ)
        bind_to_loopback(os.environ)
        self._version = _load(model, number, validated)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="predict")
        self._failed = ""
        freeze()

    async def __call__(self, inputs: Mapping[str, Array], abstained: Sequence[int]) -> Reply:
        """Outputs, or why the model refuses the values, as a reply: Ray would wrap an exception."""
        try:
            rows = self._version.check(inputs)
            return await self._version.answer(inputs, rows, abstained, self._threads)
        except BadRequest as refusal:
            return str(refusal)
        except DeviceFailed as failure:
            self._failed = str(failure)
            raise

    def check_health(self) -> None:
        """Have Serve replace a replica whose CUDA device failed, which does no more work for this process.

        Raises: DeviceFailed.
        """
        if self._failed:
            raise DeviceFailed(self._failed)


class TimedVersionReplica(VersionReplica):
    """A replica of an autoscaled deployment, which measures the latency of its answers."""

    def __init__(self, model: str, number: int, options: dict[str, Any]) -> None:
        super().__init__(model, number, options)
        self._meter = LatencyMeter()

    async def __call__(self, inputs: Mapping[str, Array], abstained: Sequence[int]) -> Reply:
        """Answer as `VersionReplica`; refusals are not measured, answers cancelled at a deadline are."""
        begin, answered = self._meter.begin(), False
        try:
            reply = await super().__call__(inputs, abstained)
            answered = not isinstance(reply, str)
        except asyncio.CancelledError:
            answered = True
            raise
        finally:
            self._meter.end(begin, answered=answered)
        return reply

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Metrics that Serve scales by; it asks once a second."""
        return self._meter.autoscaling_metrics()


def _load(model: str, number: int, options: PredictorOptions) -> LoadedVersion:
    from toque.ray_apps.predictor.versions.scoring import load_scorer  # late: only replicas need torch

    platform = open_store(options.store_url, audit_keys=AuditKeys.of_environment(os.environ))
    store = workspace_store(platform, options.workspace)
    registry = Registry(store, actor=f"predictor/{model}")
    try:
        record = registry.get_version(model, number)
        trusted = registry.get_model(model).policy.trusted_types
    except (RegistryError, OSError) as error:
        raise LoadError(f"{model}@{number} cannot be fetched: {error}") from error
    loader = partial(load_scorer, device=device_of(options))
    sandbox = sandbox_of(options.sandbox)
    try:
        return fetch_version(
            record,
            registry,
            tried_first(sandbox.check, loader),
            scratch=temporary_folder("loading"),
            trusted_types=trusted,
        )
    finally:
        sandbox.close()


def device_of(options: PredictorOptions) -> str:
    """The device that a dedicated replica runs programs on: "cuda" only if a GPU was reserved for it.

    Derived from the options, because Ray 2.60 leaves CUDA_VISIBLE_DEVICES as it is where no GPU was requested: such a
    replica may see all GPUs of its machine (RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1 would hide them).
    """
    return "cuda" if options.dedicated is not None and options.dedicated.num_gpus > 0 else "cpu"


def version_application(model: str, number: int, options: PredictorOptions) -> serve.Application:
    """The Serve application of one version, to be run without a route. Raises: ValueError without `dedicated`."""
    own = options.dedicated
    if own is None:
        raise ValueError(f"options.dedicated is None: {model!r} is loaded by its endpoint; set it")
    scaled = options.model_copy(
        update={
            "num_replicas": own.max_replicas,
            "min_replicas": own.min_replicas,
            "max_replicas": None if own.min_replicas == own.max_replicas else own.max_replicas,
            "target_latency_ms": own.target_latency_ms,
        }
    )
    replica: Any = VersionReplica if scaled.max_replicas is None else TimedVersionReplica
    bound: Any = serve.deployment(
        replica,  # Serve's overloads take a class with options for a decorator
        name=version_app(model, number, options.workspace),
        **laid_out(
            {
                "on_serve_nodes": options.on_serve_nodes and own.num_gpus == 0,
                "ray_actor_options": {"num_cpus": own.num_cpus, "num_gpus": own.num_gpus},
                "graceful_shutdown_timeout_s": 10,  # no HAProxy stands before it
                **scaled.scale,
            }
        ),
        max_ongoing_requests=options.max_ongoing_requests,
        max_constructor_retry_count=1,  # the endpoint tries again, and logs why
        health_check_period_s=5,
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    application: serve.Application = bound.bind(model, number, options.model_dump(mode="json"))
    return application


class ServeDeployments:
    """Deployments of one model's versions on this cluster's Serve, as seen from a replica of the model's endpoint.

    release: of the endpoint, a number that grows with each deploy.
    """

    def __init__(self, model: str, options: PredictorOptions, own: DedicatedOptions, *, release: int) -> None:
        self._model, self._options, self._own, self._release = model, options, own, release
        self._replica = serve.get_replica_context().replica_tag
        self._prefix = self._app(0)[:-1]

    def find(self, number: int) -> DeploymentStatus | None:
        """The status of a version's deployment, or None without one."""
        found = serve.status().applications.get(self._app(number))
        if found is None or found.status == ApplicationStatus.NOT_STARTED:
            return None
        return DeploymentStatus(_STATES[found.status], _reason(found))

    def deploy(self, number: int) -> bool:
        """Deploy a version, not waiting for it; False if another endpoint replica is about to."""
        name = self._app(number)
        if not self._call_reaper("claim", name, self._replica):
            return False
        application = version_application(self._model, number, self._options)
        target = serve.RunTarget(target=application, name=name, route_prefix=None)
        serve.run_many([target], wait_for_applications_running=False)
        # A replica that is killed before this call leaves its claim to expire, and another one deploys again.
        self._call_reaper("deployed", name, self._release)
        return True

    def release(self, number: int) -> int:
        """The release that a version's deployment is of at least; 0 if unknown."""
        found: int = self._call_reaper("release", self._app(number))
        return found

    def hold(self, numbers: Collection[int], *, current: Collection[int]) -> Sequence[int]:
        """Hold versions for a while; returns those without a deployment, as last seen. current: of this release."""
        released = [self._app(number) for number in current]
        self._call_reaper("know", released, self._release)
        names = [self._app(number) for number in numbers]
        missing = self._call_reaper("hold", names, self._own.linger_s)
        return [int(name.removeprefix(self._prefix)) for name in missing]

    def connect(self, number: int) -> RemotePredict:
        """A function that asks a deployed version for outputs, on the endpoint's event loop."""
        name = self._app(number)
        handle = serve.get_deployment_handle(name, app_name=name)

        async def predict(inputs: Mapping[str, Array], abstained: Sequence[int]) -> Reply:
            try:
                return await _predict(handle, inputs, abstained)
            except BackPressureError as error:
                raise Overloaded(f"{self._model}@{number}: {error}") from error
            except (RayActorError, DeploymentUnavailableError) as error:
                raise NotReady(f"{self._model}@{number} does not answer: {error}") from error
            except RayTaskError as error:
                if isinstance(error.cause, PredictorError):
                    raise error.cause from None  # the message without the replica's traceback that Ray adds
                raise

        return predict

    def _app(self, number: int) -> str:
        return version_app(self._model, number, self._options.workspace)

    def _call_reaper(self, method: str, *arguments: Any) -> Any:
        return ray.get(getattr(_reaper(), method).remote(*arguments), timeout=CALL_S)


async def _predict(handle: Any, inputs: Mapping[str, Array], abstained: Sequence[int]) -> Reply:
    """The reply of a replica, or of a second one if the first dies; scoring is idempotent."""
    try:
        reply: Reply = await handle.remote(inputs, list(abstained))
    except RayActorError:
        reply = await handle.remote(inputs, list(abstained))
    return reply


def _reason(found: Any) -> str:
    """Why an application failed: the line that names our own error, if there is one."""
    messages = [found.message, *(deployment.message for deployment in found.deployments.values())]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    ours = [
        line.partition(f"{LoadError.__name__}: ")[2] for line in lines if f"{LoadError.__name__}: " in line
    ]
    return next(iter(ours), lines[-1] if lines else "its deployment failed; see `serve status`")


def _version_apps() -> list[str]:
    """Names of the applications of all dedicated versions in this cluster."""
    ended = {ApplicationStatus.NOT_STARTED, ApplicationStatus.DELETING}
    return [
        name
        for name, application in serve.status().applications.items()
        if name.startswith(VERSION_PREFIX) and "@" in name and application.status not in ended
    ]


class DeploymentHolds:
    """Holds on deployments with their expiry, claims to deploy, and the release that each deployment is of.

    clock: seconds that never run backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}
        self._claims: dict[str, tuple[str, float]] = {}
        self._releases: dict[str, int] = {}

    def hold(self, names: Iterable[str], linger_s: float) -> None:
        """Keep deployments for `linger_s` from now on."""
        self._until.update(dict.fromkeys(names, self._clock() + linger_s))

    def claim(self, name: str, replica: str) -> bool:
        """Whether `replica` may deploy `name` now: no other claimed it within the last seconds."""
        now = self._clock()
        holder, until = self._claims.get(name, (replica, 0.0))
        if holder != replica and now < until:
            return False
        self._claims[name] = (replica, now + CLAIM_S)
        return True

    def deployed(self, name: str, release: int) -> None:
        """Note that a claimed deployment was deployed, which ends the claim."""
        self._claims.pop(name, None)
        self.note_release([name], release)

    def note_release(self, names: Iterable[str], release: int) -> None:
        """Note that these deployments are of this release or a later one."""
        for name in names:
            self._releases[name] = max(release, self.release(name))

    def release(self, name: str) -> int:
        """The release that a deployment is of at least; 0 if unknown."""
        return self._releases.get(name, 0)

    def expired(self, names: Collection[str]) -> list[str]:
        """The running deployments whose hold has expired; unknown ones are held for a while first."""
        now = self._clock()
        for name in names:
            self._until.setdefault(name, now + LINGER_S)
        gone = [name for name in names if self._until[name] < now]
        self._until = {name: until for name, until in self._until.items() if until >= now}
        self._claims = {name: claim for name, claim in self._claims.items() if claim[1] >= now}
        self._releases = {name: at for name, at in self._releases.items() if name in self._until}
        return gone


class Reaper:
    """Ends deployments whose hold has expired; safe to call from several threads.

    Its methods are called by replicas of the previous release too while an upgrade goes on, so they keep their names.
    running: the names of all versions' deployments. end: ends one, and waits for it.
    """

    def __init__(
        self, running: Callable[[], Collection[str]], end: Callable[[str], None], holds: DeploymentHolds
    ) -> None:
        self._running, self._end, self._holds = running, end, holds
        self._guard = threading.Lock()  # held while a deployment ends, so that a claim on it comes after
        self._last_seen: Collection[str] = ()

    def hold(self, names: Collection[str], linger_s: float) -> list[str]:
        """Keep deployments for `linger_s`; returns those that did not run at the last sweep."""
        with self._guard:
            self._holds.hold(names, linger_s)
            return [name for name in names if name not in self._last_seen]

    def claim(self, name: str, replica: str) -> bool:
        """Whether `replica` may deploy `name` now."""
        with self._guard:
            return self._holds.claim(name, replica)

    def deployed(self, name: str, release: int) -> None:
        """Note that a claimed deployment was deployed, which ends the claim."""
        with self._guard:
            self._holds.deployed(name, release)

    def know(self, names: Collection[str], release: int) -> None:
        """Note that these deployments are of this release or a later one."""
        with self._guard:
            self._holds.note_release(names, release)

    def release(self, name: str) -> int:
        """The release that a deployment is of at least; 0 if unknown."""
        with self._guard:
            return self._holds.release(name)

    def sweep(self) -> None:
        """End every running deployment whose hold has expired."""
        with self._guard:
            self._last_seen = self._running()
            for name in self._holds.expired(self._last_seen):
                _log.warning("no endpoint holds %s any more; it ends", name)
                self._end(name)


class _ReaperActor(Reaper):
    """The reaper as a Ray actor, which sweeps every other second."""

    def __init__(self) -> None:
        super().__init__(_version_apps, serve.delete, DeploymentHolds())
        threading.Thread(target=self._sweep, name="sweep", daemon=True).start()

    def _sweep(self) -> None:
        while True:
            time.sleep(SWEEP_S)
            try:
                self.sweep()
            except Exception:  # noqa: BLE001 - a new start is the remedy for any fault, which is logged whole
                _log.exception("the reaper starts anew")
                os._exit(1)  # Ray starts it again, connected to the Serve that runs then


def _reaper() -> Any:
    """The cluster's reaper, started if it does not run."""
    try:
        return ray.get_actor(REAPER, namespace=NAMESPACE)
    except ValueError:
        made: Any = ray.remote(_ReaperActor)
        return made.options(
            name=REAPER, namespace=NAMESPACE, lifetime="detached", get_if_exists=True, num_cpus=0,
            max_restarts=-1, max_task_retries=-1, max_concurrency=8,
        ).remote()  # fmt: skip


__all__ = [
    "DeploymentHolds",
    "Reaper",
    "ServeDeployments",
    "VersionReplica",
    "device_of",
    "version_application",
]
