"""The same fit on several workers: Ray Train starts them, DDP averages their gradients.

Every worker reads the same snapshot and prepares it alike, then takes its share of each batch; so what N workers learn
is what one would, up to rounding. On CPUs they talk through gloo, on GPUs through nccl.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from functions.training.errors import TrainingError
from functions.training.fitting import Columns, Fitted, OnEpoch, fit, prepare
from functions.training.loop import Epoch, threads
from functions.training.params import TabularParams
from registry import Run, Table, TableSnapshot

_MAX_LOST_GROUPS = 2  # how often the group may be started again after a worker died


@dataclass(frozen=True, slots=True)
class Workers:
    """How many workers train, and the CPUs that each may use."""

    count: int
    cpus_each: float = 1.0


@dataclass(frozen=True, slots=True)
class Job:
    """What every worker is told. run: where the first worker logs its epochs."""

    table: Table
    snapshot: TableSnapshot
    columns: Columns
    params: TabularParams
    threads: int
    run: Run


class ProcessGroup:
    """The world of one worker among the processes of torch.distributed."""

    def __init__(self) -> None:
        self.rank = torch.distributed.get_rank()
        self.size = torch.distributed.get_world_size()

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over the workers."""
        return DistributedDataParallel(module, forward_sync_buffers=False)

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over the workers."""
        torch.distributed.all_reduce(values)
        return values


def fit_on_workers(job: Job, workers: Workers) -> Fitted:
    """Fit on several workers; what a lost worker interrupted is started again.

    Raises: TrainingError as `fit` and `prepare` do, if Ray is not running, or if it lacks the CPUs.
    """
    _require_room(workers)
    with tempfile.TemporaryDirectory(prefix="toque-train-") as folder:
        trainer = ray.train.torch.TorchTrainer(
            _work,  # type: ignore[arg-type]  # a result is returned, which the stub does not know
            train_loop_config={"job": job},
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers.count, resources_per_worker={"CPU": workers.cpus_each}
            ),
            run_config=ray.train.RunConfig(
                name=f"run-{job.run.id}",
                storage_path=folder,
                failure_config=ray.train.FailureConfig(max_failures=_MAX_LOST_GROUPS),
            ),
        )
        result = trainer.fit().return_value  # type: ignore[attr-defined]  # the stub is of the old API
    if isinstance(result, TrainingError):
        raise result
    if not isinstance(result, Fitted):
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
            },
            step=epoch.number,
        )

    return log


def _work(config: dict[str, Any]) -> Fitted | TrainingError:
    """One worker's part. An error of the data or the loss is returned: starting again would only meet it again."""
    job: Job = config["job"]
    world = ProcessGroup()
    table = job.columns.read(job.table, job.snapshot)
    first = world.rank == 0
    try:
        with threads(job.threads):
            fitted = fit(
                prepare(table, job.columns, job.params),
                job.params,
                world=world,
                on_epoch=log_epoch(job.run) if first else None,
            )
    except TrainingError as error:
        return error
    if first:
        job.run.flush()
    return fitted


def _require_room(workers: Workers) -> None:
    if not ray.is_initialized():
        raise TrainingError(
            f"num_workers={workers.count} needs a Ray cluster: call ray.init() first, or train with num_workers=1"
        )
    wanted, there = workers.count * workers.cpus_each, ray.cluster_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]  # no stub
    if wanted > there:
        raise TrainingError(
            f"{workers.count} workers of {workers.cpus_each} CPUs want {wanted} CPUs, the cluster has {there}: "
            "ask for fewer workers or a smaller worker_cpus"
        )
