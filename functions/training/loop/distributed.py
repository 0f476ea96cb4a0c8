"""The same training on several workers: Ray Train starts them; each holds the whole model or a share of it.

Every worker prepares the same data alike, then takes its share of each batch; so what N workers learn is what one would,
up to rounding. On CPUs they talk through gloo, on GPUs through nccl.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import ray
import ray.train
import ray.train.torch
import torch

from functions.model_formats.torch_threads import torch_threads
from functions.runtime.run.cluster import NOT_WHERE_IT_SERVES
from functions.runtime.run.niceness import step_back
from functions.training.errors import TrainingError
from functions.training.loop.cost import Meter, Spent
from functions.training.loop.interrupts import interruptible
from functions.training.loop.parallel import Alone, Replicas, Shards, World
from functions.training.loop.training_loop import Epoch, OnEpoch
from registry import Run

_MAX_LOST_GROUPS = 2  # how often the group may be started again after a worker died
Sharding = Literal["replicate", "shard"]
T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Workers:
    """How many workers train, the CPUs and GPUs of each, and whether each holds the whole model ("replicate") or a share.

    Without GPUs a worker computes on its CPUs.
    """

    count: int = 1
    cpus_each: float = 1.0
    gpus_each: float = 0.0
    sharding: Sharding = "replicate"

    @property
    def threads(self) -> int:
        """How many threads a worker may use."""
        return max(1, int(self.cpus_each))

    @property
    def device(self) -> str:
        """What one computes on."""
        return "cuda" if self.gpus_each > 0 else "cpu"


class Job(Protocol[T_co]):
    """What every worker is told. run: where the first of them logs its epochs."""

    @property
    def run(self) -> Run:
        """The run."""

    def work(self, world: World, on_epoch: OnEpoch | None) -> T_co:
        """Train as one of `world`. Raises: TrainingError."""


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """What the workers made. spent: by processes other than the caller's."""

    made: T
    spent: Spent


def carry_through(job: Job[T], workers: Workers) -> Done[T]:
    """Do a job here, or on the cluster if it is for several workers.

    Raises: TrainingError as the job does; if Ray is not running or lacks what was asked for; if there is no such card.
    """
    if workers.count > 1:
        return work_on_cluster(job, workers)
    if workers.sharding == "shard":
        raise TrainingError(
            "sharding='shard' with num_workers=1: one worker holds all of it; ask for two or more"
        )
    if workers.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError(f"worker_gpus={workers.gpus_each}: torch finds no GPU here; leave it at 0")
    with torch_threads(workers.threads):
        return Done(job.work(Alone(workers.device), log_epoch(job.run)), Spent())


def work_on_cluster(job: Job[T], workers: Workers) -> Done[T]:
    """Do a job on several workers; what a lost worker interrupted goes on after its last epoch.

    Raises: TrainingError as the job does, if Ray is not running, or if it lacks the CPUs or GPUs.
    """
    _require_room(workers)
    with tempfile.TemporaryDirectory(prefix="toque-train-") as folder:
        trainer = ray.train.torch.TorchTrainer(
            _work,  # type: ignore[arg-type]  # a result is returned, which the stub does not know
            train_loop_config={"job": job, "workers": workers},
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers.count,
                use_gpu=workers.gpus_each > 0,
                resources_per_worker=_resources(workers),
                label_selector=NOT_WHERE_IT_SERVES,  # type: ignore[call-arg]  # the stub is of the old API
            ),
            run_config=ray.train.RunConfig(
                name=f"run-{job.run.id}",
                storage_path=folder,
                failure_config=ray.train.FailureConfig(max_failures=_MAX_LOST_GROUPS),
            ),
        )
        with interruptible():
            result = trainer.fit().return_value  # type: ignore[attr-defined]  # the stub is of the old API
    if isinstance(result, TrainingError):
        raise result
    if not isinstance(result, Done):
        raise TrainingError(f"the workers of run {job.run.id} returned {type(result).__name__}, not a model")
    return result


def log_epoch(run: Run) -> OnEpoch:
    """A callback that logs each epoch's losses and speed to `run`."""

    def log(epoch: Epoch) -> None:
        run.log_metrics(
            {
                "train_loss": epoch.train_loss,
                "valid_loss": epoch.valid_loss,
                "epoch_s": epoch.seconds,
                "rows_per_s": epoch.rows_per_s,
                "busy": epoch.busy,
                **{f"{unit}_per_s": rate for unit, rate in epoch.units_per_s.items()},
            },
            step=epoch.number,
        )

    return log


def _work(config: dict[str, Any]) -> Done[Any] | TrainingError:
    """One worker's part. An error of the data or the loss is returned: starting again would only meet it again."""
    job: Job[Any] = config["job"]
    workers: Workers = config["workers"]
    step_back()
    device = "cpu" if workers.device == "cpu" else str(ray.train.torch.get_device())
    world = Shards(device) if workers.sharding == "shard" else Replicas(device)
    first, meter = world.rank == 0, Meter(device, workers.gpus_each)
    try:
        with torch_threads(workers.threads):
            made = job.work(world, log_epoch(job.run) if first else None)
    except TrainingError as error:
        return error
    if first:
        job.run.flush()
    return Done(made, meter.read().over(world))


def _resources(workers: Workers) -> dict[str, float]:
    cards = {"GPU": workers.gpus_each} if workers.gpus_each > 0 else {}
    return {"CPU": workers.cpus_each, **cards}


def _require_room(workers: Workers) -> None:
    if not ray.is_initialized():
        raise TrainingError(
            f"num_workers={workers.count} needs a Ray cluster: call ray.init() first, or train with num_workers=1"
        )
    for kind, each in _resources(workers).items():
        wanted, there = workers.count * each, ray.cluster_resources().get(kind, 0.0)  # type: ignore[no-untyped-call]  # no stub
        if wanted > there:
            raise TrainingError(
                f"{workers.count} workers of {each} {kind}s want {wanted} {kind}s, the cluster has {there}: "
                f"ask for fewer workers or a smaller worker_{kind.lower()}s"
            )
