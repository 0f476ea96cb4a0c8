"""Frame around every trainer: a run, its cost, the files checked as they will be served, metrics, and the registered version."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from toque.functions.evaluation.meanings import MEANINGS, Outcome
from toque.functions.evaluation.outcome_kinds import GROUP_TAG, kind_of
from toque.functions.model_formats.load import check_example, load
from toque.functions.model_formats.mlflow_files import name_as_served
from toque.functions.runtime.cards import share_of
from toque.functions.runtime.context import context
from toque.functions.runtime.environments import Environment, in_force
from toque.functions.runtime.receipt import Prices
from toque.functions.training.cost import CostMeter, metered
from toque.functions.training.errors import TrainingDataError, TrainingError
from toque.functions.training.params import run_params
from toque.functions.training.request import LOSS, TrainingRequest, TrialStopped, Watch, Workers
from toque.functions.training.trainer import Trained, Trainer
from toque.registry import Lineage, ModelPolicy, ModelVersion, NotFound, Registry, Run, Table, TableSnapshot
from toque.registry.models import Signature


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """Specification of a training: what is learnt from what by which trainer, and what is recorded of it.

    code: digest of all code that the weights depend on; features, datasets, parent: lineage beside the training set; params: what
    the run records beside the trainer's parameters; run_tags, tags: of the run, and of both run and version; register: whether
    a version is made of it; policy: of the model if it is not there yet; watch: see `TrainingRequest.report`; environment: what was
    submitted with it, and is in force in this process.
    """

    model: str
    trainer: Trainer
    code: str
    label: str = ""
    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    outcome: Outcome = "binary"
    group: str = ""
    training_set: TableSnapshot | None = None
    workers: Workers = field(default_factory=Workers)
    features: dict[str, str] = field(default_factory=dict)
    datasets: tuple[TableSnapshot, ...] = ()
    parent: int | None = None
    start_from: int | None = None
    experiment: str | None = None
    params: Mapping[str, object] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    run_tags: dict[str, str] = field(default_factory=dict)
    sweep_run: str | None = None
    register: bool = True
    policy: ModelPolicy | None = None
    watch: Watch | None = None
    environment: Environment | None = None

    @property
    def lineage_parent(self) -> int | None:
        """Version that this one challenges or begins with. Raises: TrainingDataError if they differ."""
        if self.start_from is None:
            return self.parent
        if self.parent not in {None, self.start_from}:
            raise TrainingDataError(
                f"parent={self.parent} and start_from={self.start_from}: what a training starts from is its parent; leave "
                "parent out"
            )
        return self.start_from

    def request(
        self, registry: Registry, run: Run, folder: Path, **hooks: Callable[..., None]
    ) -> TrainingRequest:
        """Make the request that the trainer gets."""
        return TrainingRequest(
            model=self.model,
            label=self.label,
            numeric=self.numeric,
            categorical=self.categorical,
            tensors=self.tensors,
            outcome=self.outcome,
            group=self.group,
            training_set=self.training_set,
            parameters=self.trainer.parameters,
            split=self.trainer.split,
            valid_fraction=self.trainer.valid_fraction,
            seed=self.trainer.seed,
            folder=folder,
            workers=self.workers,
            registry=registry,
            run=run,
            start_from=self.start_from,
            watch=self.watch,
            **hooks,
        )


def _made_by() -> dict[str, str]:
    """Tag that names the durable invocation of a training, whose log is the run's; none of one that was called directly."""
    invocation = context().invocation
    return {} if invocation is None else {"invocation": invocation}


def _brought() -> dict[str, str]:
    """Tag of what this process's environment brought; none of one with the platform's packages alone."""
    brought = in_force()
    return {} if brought is None else {"environment": str(brought)}


def run_training(registry: Registry, job: TrainingJob, prices: Prices | None) -> Trained:
    """Train in a run of its own, and register the next version if asked.

    Raises: TrainingError as the trainer does, and if its files cannot be served; the run is then FAILED, nothing is registered. Also, before
    there is a run, if its environment is not that of this process, or it starts from a version and the trainer cannot.
    """
    if job.environment is not None and job.environment != in_force():
        raise TrainingError(
            f"environment={str(job.environment)!r} and this process has {str(in_force())!r}: only a submitted call has one, and "
            "gives it to all that it starts; submit the training, or leave it out"
        )
    if job.start_from is not None and not job.trainer.warm_starts:
        raise TrainingDataError(
            f"start_from={job.start_from}: trainer {job.trainer.kind!r} of {job.model!r} cannot begin with a version; leave it out"
        )
    used = [] if job.training_set is None else [job.training_set]
    with registry.start_run(
        job.experiment or job.model,
        name=f"train {job.model}",
        params=run_params(job.trainer.parameters, **job.params),
        tags={
            "kind": "training",
            "model": job.model,
            "trainer": job.trainer.kind,
            **_made_by(),
            **_brought(),
            **job.tags,
            **job.run_tags,
        },
        datasets=[*used, *job.datasets],
        code=job.code,
        parent=job.sweep_run,
    ) as run:
        own_gpus = job.workers.gpus_each if job.workers.count == 1 else 0.0
        device = job.workers.device if own_gpus else "cpu"
        with metered(
            run, prices, device=device, gpus=own_gpus, card_share=share_of(job.workers.card)
        ) as meter:
            return _train(registry, run, job, meter)


def _train(registry: Registry, run: Run, job: TrainingJob, meter: CostMeter) -> Trained:
    began, parent = time.perf_counter(), job.lineage_parent
    with ExitStack() as registered, tempfile.TemporaryDirectory(prefix="toque-model-") as folder:
        after: list[Callable[[], None]] = []
        request = job.request(registry, run, Path(folder), count_use=meter.add, when_registered=after.append)
        try:
            _refuse_empty_columns(registry, job)
            trained = _checked(job, request, job.trainer(request))
        except TrialStopped as stopped:
            run.set_tags({"stopped": str(stopped)})
            trained, version = Trained(stopped=str(stopped)), None
        else:
            version = _register(registry, run, job, Path(folder), trained, parent) if job.register else None
        run.log_metrics({"seconds": time.perf_counter() - began})
        for each in after:
            registered.callback(each)
    return trained.model_copy(
        update={
            "run_id": run.id,
            "model": job.model,
            "version": None if version is None else version.version,
            "seconds": time.perf_counter() - began,
            "cost": meter.cost(),
        }
    )


def _refuse_empty_columns(registry: Registry, job: TrainingJob) -> None:
    """Refuse a set without rows, and a feature without a value in any: nothing is learnt from it, and its source was likely never read.

    Raises: TrainingDataError.
    """
    left, rows = {*job.numeric, *job.categorical, *job.tensors}, 0
    if job.training_set is None or not left:
        return
    table = Table(registry.store, job.training_set.name)
    for batch in table.batches(version=job.training_set.version, columns=sorted(left)):
        rows += batch.num_rows
        left &= {name for name in batch.column_names if _is_empty(batch.column(name))}
        if not left:
            return
    if not rows:
        raise TrainingDataError(
            f"{job.training_set} has no rows; version 0 creates a table, and the first rows are version 1"
        )
    empty = [name for name in (*job.numeric, *job.categorical, *job.tensors) if name in left]
    if empty:
        raise TrainingDataError(
            f"{', '.join(empty)} of {job.model!r}: null in each of the {rows:,} rows of {job.training_set}; bring values into the "
            "view (`toque run refresh_features`), check its join keys and times, or leave the feature out of the model"
        )


def _is_empty(column: pa.ChunkedArray) -> bool:
    """Whether no value is there; NaN stands for none too."""
    return bool(pc.all(pc.is_null(column, nan_is_null=pa.types.is_floating(column.type))).as_py())


def _checked(job: TrainingJob, request: TrainingRequest, trained: Trained) -> Trained:
    """Load what a trainer wrote, and complete what it left out. Raises: TrainingError if it returns or wrote something else."""
    if not isinstance(trained, Trained):
        raise TrainingError(
            f"trainer {job.trainer.kind!r} of {job.model!r} returned {type(trained).__name__}: return a Trained()"
        )
    name_as_served(request.folder)  # of a trainer that saves as MLflow does
    run, signature = request.run, trained.signature or request.signature
    found = trained.model_copy(update={"signature": signature})
    if not trained.metrics:
        found = found.model_copy(
            update=_measured(request, signature, _policy(request.registry, job).trusted_types)
        )
    size = sum(path.stat().st_size for path in request.folder.rglob("*") if path.is_file())
    known = {"best_epoch": found.best_epoch, "rows": found.rows, "size_bytes": size}
    reported = (
        {LOSS} if run.series(LOSS) else set()
    )  # the curve's last point is of the last epoch, not of the best
    run.log_metrics(
        {name: value for name, value in found.metrics.items() if name not in reported}, step=found.best_epoch
    )
    run.log_metrics(known)
    return found


def _policy(registry: Registry, job: TrainingJob) -> ModelPolicy:
    """Policy of the model as it is, or as it will be once it is there."""
    try:
        return registry.get_model(job.model).policy
    except NotFound:
        return job.policy or ModelPolicy()


def _measured(
    request: TrainingRequest, signature: Signature, trusted_types: frozenset[str]
) -> dict[str, Any]:
    """Metrics on the rows held out, of the files as they will be served; the main loss is "valid_loss" too."""
    model = load(request.folder, signature=signature, trusted_types=trusted_types)
    check_example(model)
    kind, rows = kind_of(signature, request.group), request.valid_rows
    answers = kind.by_unit(rows, kind.answers(model.predict_table(rows)))
    labels = kind.by_unit(rows, kind.label(rows, request.label))
    metrics = {name: metric(labels, answers) for name, metric in kind.metrics.items()}
    return {
        "metrics": {**metrics, LOSS: metrics[MEANINGS[request.outcome].main_metric]},
        "rows": request.rows.num_rows,
    }


def _register(
    registry: Registry, run: Run, job: TrainingJob, folder: Path, trained: Trained, parent: int | None
) -> ModelVersion:
    described = {name: value for name, value in (("label", job.label), (GROUP_TAG, job.group)) if value}
    registry.create_model(job.model, exist_ok=True, policy=job.policy)
    used = [] if job.training_set is None else [job.training_set]
    version = registry.create_version(
        job.model,
        folder,
        signature=trained.signature,
        metrics=trained.metrics,
        tags={"kind": job.trainer.kind, **described, **_brought(), **job.tags},
        lineage=Lineage(
            run=run.id, datasets=[*used, *job.datasets], features=job.features, code=job.code, parent=parent
        ),
        key=run.id,
    )
    run.set_tags({"version": str(version.version)})
    return version
