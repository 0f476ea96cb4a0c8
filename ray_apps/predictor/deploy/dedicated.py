"""A version's own deployment on Serve, and how a door runs, holds and asks it.

The deployment is a Serve application without a route, `version-{model}@{number}` (a model's name has no `@`). It
is the only one that loads the version; the door of the model has the protocol, the split, the log and all else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.schema import ApplicationStatus, LoggingConfig

from ray_apps.predictor.deploy.latency import Timing
from ray_apps.predictor.deploy.options import DedicatedOptions, PredictorOptions
from ray_apps.predictor.deploy.process import freeze, furnish_process
from ray_apps.predictor.deploy.reaper import Holds, Keeper
from ray_apps.predictor.deploy.remote import Ask, Found, Reply, State
from ray_apps.predictor.protocol.datatypes import Array
from ray_apps.predictor.protocol.errors import BadRequest, CardFailed, NotReady, Overloaded, PredictorError
from ray_apps.predictor.versions.loaded import LoadedVersion, LoadError, fetch_version
from registry import Registry, open_store
from registry.errors import RegistryError

__all__ = ["ServeSite", "VersionReplica", "device_of", "version_app", "version_application"]

PREFIX = "version-"
KEEPER, NAMESPACE = "toque-keeper", "toque"
SWEEP_S = 2.0
CALL_S = 90.0
"""The keeper answers within it, even while a deployment ends."""
_STATES = {
    ApplicationStatus.RUNNING: State.RUNNING,
    ApplicationStatus.UNHEALTHY: State.RUNNING,  # Serve starts replicas again, and requests wait for them
    ApplicationStatus.DEPLOY_FAILED: State.FAILED,
    ApplicationStatus.DELETING: State.ENDING,
    ApplicationStatus.DEPLOYING: State.STARTING,
}
_log = logging.getLogger("ray.serve")


def version_app(model: str, number: int) -> str:
    """The Serve application, and in it the deployment, of a version that has its own."""
    return f"{PREFIX}{model}@{number}"


class VersionReplica:
    """One replica of a version's deployment."""

    def __init__(self, model: str, number: int, options: dict[str, Any]) -> None:
        furnish_process()
        self._version = _load(model, number, PredictorOptions.model_validate(options))
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="predict")
        self._failed = ""
        freeze()

    async def __call__(self, inputs: Mapping[str, Array], abstained: Sequence[int]) -> Reply:
        """Outputs, or why the model refuses the values: a reply of its own, as exceptions change on their way."""
        try:
            rows = self._version.check(inputs)
            return await self._version.answer(inputs, rows, abstained, self._threads)
        except BadRequest as refusal:
            return str(refusal)
        except CardFailed as failure:
            self._failed = str(failure)
            raise

    def check_health(self) -> None:
        """Serve replaces a replica whose card failed: nothing that its process asks of the card succeeds again.

        Raises: CardFailed.
        """
        if self._failed:
            raise CardFailed(self._failed)


class TimedVersionReplica(VersionReplica):
    """One of as many as it takes."""

    def __init__(self, model: str, number: int, options: dict[str, Any]) -> None:
        super().__init__(model, number, options)
        self._timing = Timing()

    async def __call__(self, inputs: Mapping[str, Array], abstained: Sequence[int]) -> Reply:
        """As without; what is refused is not timed, what ran out of its caller's time is."""
        begin, answered = self._timing.begin(), False
        try:
            reply = await super().__call__(inputs, abstained)
            answered = not isinstance(reply, str)
        except asyncio.CancelledError:
            answered = True
            raise
        finally:
            self._timing.end(begin, answered=answered)
        return reply

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve asks for once a second."""
        return self._timing.figures()


def _load(model: str, number: int, options: PredictorOptions) -> LoadedVersion:
    from ray_apps.predictor.versions.scoring import (
        load_scorer,  # late: torch is for replicas, not for who deploys
    )

    registry = Registry(open_store(options.store_url), actor=f"predictor/{model}")
    try:
        record = registry.get_version(model, number)
    except (RegistryError, OSError) as error:
        raise LoadError(f"{model}@{number} cannot be fetched: {error}") from error
    scratch = Path(tempfile.gettempdir()) / "toque-loading"
    loader = partial(load_scorer, device=device_of(options))
    return fetch_version(record, registry, loader, scratch=scratch)


def device_of(options: PredictorOptions) -> str:
    """What a version's own replica runs programs on: a card only if one was reserved.

    Said, and not found out: Ray 2.60 leaves CUDA_VISIBLE_DEVICES as it is where no card was asked for, so a replica
    without one may see all cards of its machine (RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1 would hide them).
    """
    return "cuda" if options.dedicated is not None and options.dedicated.num_gpus > 0 else "cpu"


def version_application(model: str, number: int, options: PredictorOptions) -> serve.Application:
    """The Serve application of one version, to be run without a route. Raises: ValueError without `dedicated`."""
    own = options.dedicated
    if own is None:
        raise ValueError(f"options.dedicated is None: {model!r} is loaded by its door; set it")
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
        name=version_app(model, number),
        **scaled.scale,
        max_ongoing_requests=options.max_ongoing_requests,
        ray_actor_options={"num_cpus": own.num_cpus, "num_gpus": own.num_gpus},
        max_surge_percent=100,  # with new code, the old replica answers until the new one does
        max_constructor_retry_count=1,  # the door tries again, and tells why it has to
        health_check_period_s=5,
        graceful_shutdown_timeout_s=10,
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    application: serve.Application = bound.bind(model, number, options.model_dump(mode="json"))
    return application


class ServeSite:
    """The versions of one model on the Serve of this cluster, seen from a replica of its door.

    release: the door's, a number that grows with each deploy.
    """

    def __init__(self, model: str, options: PredictorOptions, own: DedicatedOptions, *, release: int) -> None:
        self._model, self._options, self._own, self._release = model, options, own, release
        self._door = serve.get_replica_context().replica_tag
        self._prefix = version_app(model, 0)[:-1]

    def find(self, number: int) -> Found | None:
        """A version's deployment, or None."""
        found = serve.status().applications.get(version_app(self._model, number))
        if found is None or found.status == ApplicationStatus.NOT_STARTED:
            return None
        return Found(_STATES[found.status], _reason(found))

    def begin(self, number: int) -> bool:
        """Deploy a version, not waiting for it; False if another door is about to."""
        name = version_app(self._model, number)
        if not self._tell("claim", name, self._door):
            return False
        application = version_application(self._model, number, self._options)
        target = serve.RunTarget(target=application, name=name, route_prefix=None)
        serve.run_many([target], wait_for_applications_running=False)
        self._tell("deployed", name, self._release)  # killed before: another door deploys once more
        return True

    def release(self, number: int) -> int:
        """The door's release that a version's deployment is of at least; 0 if that is not known."""
        found: int = self._tell("release", version_app(self._model, number))
        return found

    def hold(self, numbers: Collection[int], *, current: Collection[int]) -> Sequence[int]:
        """Keep versions for a while; returns those without a deployment, as last seen. current: of our release."""
        self._tell("know", [version_app(self._model, number) for number in current], self._release)
        names = [version_app(self._model, number) for number in numbers]
        missing = self._tell("hold", names, self._own.linger_s)
        return [int(name.removeprefix(self._prefix)) for name in missing]

    def ask(self, number: int) -> Ask:
        """How to ask a version that has a deployment, on the door's event loop."""
        name = version_app(self._model, number)
        handle = serve.get_deployment_handle(name, app_name=name)

        async def ask(inputs: Mapping[str, Array], abstained: Sequence[int]) -> Reply:
            try:
                return await _asked(handle, inputs, abstained)
            except BackPressureError as error:
                raise Overloaded(f"{self._model}@{number}: {error}") from error
            except (RayActorError, DeploymentUnavailableError) as error:
                raise NotReady(f"{self._model}@{number} does not answer: {error}") from error
            except RayTaskError as error:
                if isinstance(error.cause, PredictorError):
                    raise error.cause from None  # its words are for the caller; Ray adds the replica's traceback
                raise

        return ask

    def _tell(self, what: str, *words: Any) -> Any:
        return ray.get(getattr(_keeper(), what).remote(*words), timeout=CALL_S)


async def _asked(handle: Any, inputs: Mapping[str, Array], abstained: Sequence[int]) -> Reply:
    """What a replica says; if it dies over it, what another one says. Scoring twice is scoring once."""
    try:
        reply: Reply = await handle.remote(inputs, list(abstained))
    except RayActorError:
        reply = await handle.remote(inputs, list(abstained))
    return reply


def _reason(found: Any) -> str:
    """Why an application failed: the line that names our own error, if there is one."""
    messages = [found.message, *(one.message for one in found.deployments.values())]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    ours = [
        line.partition(f"{LoadError.__name__}: ")[2] for line in lines if f"{LoadError.__name__}: " in line
    ]
    return next(iter(ours), lines[-1] if lines else "its deployment failed; see `serve status`")


def _there() -> list[str]:
    """All versions' applications of this cluster."""
    ended = {ApplicationStatus.NOT_STARTED, ApplicationStatus.DELETING}
    found = serve.status().applications.items()
    return [
        name for name, one in found if name.startswith(PREFIX) and "@" in name and one.status not in ended
    ]


class _Sweeping(Keeper):
    """The keeper as an actor."""

    def __init__(self) -> None:
        super().__init__(_there, serve.delete, Holds())
        threading.Thread(target=self._sweep, name="sweep", daemon=True).start()

    def _sweep(self) -> None:
        while True:
            time.sleep(SWEEP_S)
            try:
                self.sweep()
            except Exception:  # noqa: BLE001 - whatever it is, a new start is the remedy, and it is logged whole
                _log.exception("the keeper starts anew")
                os._exit(1)  # Ray starts it again, connected to the Serve that runs then


def _keeper() -> Any:
    """The cluster's keeper, started if there is none."""
    try:
        return ray.get_actor(KEEPER, namespace=NAMESPACE)
    except ValueError:
        made: Any = ray.remote(_Sweeping)
        return made.options(
            name=KEEPER, namespace=NAMESPACE, lifetime="detached", get_if_exists=True, num_cpus=0,
            max_restarts=-1, max_task_retries=-1, max_concurrency=8,
        ).remote()  # fmt: skip
