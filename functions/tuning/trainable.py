"""Ray Tune's part of every sweep: the one Trainable, the room that it takes, and the call of the tuner."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray import tune

from toque.functions.model_formats.load import torch_threads
from toque.functions.runtime.errors import NoRoom
from toque.functions.runtime.process import lower_priority
from toque.functions.runtime.run.cluster import AWAY_FROM_SERVING
from toque.functions.runtime.run.room import wait_for_room
from toque.functions.training.cost import ResourceMeter, ResourceUse
from toque.functions.training.errors import TrainingError
from toque.functions.training.loop.keeping import interruptible
from toque.functions.training.loop.process_group import SingleProcess
from toque.functions.training.tabular.fitting import Prepared, new_trainer
from toque.functions.training.tabular.params import TabularParams
from toque.functions.training.trainer import Epoch
from toque.functions.tuning.search import LEG, RESULTS, Result
from toque.functions.tuning.stacked import StackedTrainer
from toque.functions.tuning.trial_states import FINISHED, Leg, Snapshot, TrialStates, metrics_of

_STARTED_IN = "TUNE_ORIG_WORKING_DIR"  # Tune changes into a folder of the trial


class SweepTrial(tune.Trainable):
    """Tune's actor of every trial, which goes on to its next result a step, and is used again for other trials."""

    def setup(self, config: dict[str, Any], *, training: TabularTraining) -> None:  # type: ignore[override]  # with_parameters passes the other
        """Begin with the settings in `config`."""
        lower_priority()
        self._training = training
        self._begin(config)

    def step(self) -> dict[str, Any]:
        """Train up to the next result and return it."""
        return next(self._results)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Let Tune use this actor for the next trial, once the last one has ended."""
        self.cleanup()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        """End the trial if it has not ended."""
        self._results.close()  # type: ignore[attr-defined]  # of a generator

    def _begin(self, config: dict[str, Any]) -> None:
        os.chdir(os.environ.get(_STARTED_IN, os.curdir))
        self._results = self._training.results(config)


@dataclass(frozen=True, slots=True)
class TrialResources:
    """Number of trials that train at a time, and CPUs and GPUs of each."""

    concurrency: int
    cpus_per_trial: float
    gpus_per_trial: float = 0.0

    def placement_group(self) -> tune.PlacementGroupFactory:
        """Placement group that Tune requests of Ray for a trial."""
        return tune.PlacementGroupFactory(
            [{"CPU": self.cpus_per_trial, "GPU": self.gpus_per_trial}],
            bundle_label_selector=[AWAY_FROM_SERVING],
        )

    def wait_for_room(self) -> None:
        """Wait until the cluster holds one trial; the others come as there is room. Raises: TrainingError if it never can."""
        try:
            wait_for_room(
                1,
                {"CPU": self.cpus_per_trial, "GPU": self.gpus_per_trial},
                what=f"a trial with cpus_per_trial={self.cpus_per_trial:g}, gpus_per_trial={self.gpus_per_trial:g}",
                remedy="ask for less of them",
            )
        except NoRoom as error:
            raise TrainingError(str(error)) from error


@contextmanager
def cluster() -> Iterator[None]:
    """Work on the cluster that this process is connected to, or else on one of this machine until the end of the block."""
    if ray.is_initialized():
        yield
        return
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def run_on_tune(
    training: TabularTraining,
    searcher: tune.search.Searcher,
    resources: TrialResources,
    *,
    callbacks: Sequence[tune.Callback] = (),
    stopper: tune.Stopper | None = None,
) -> list[tuple[dict[str, Any], str]]:
    """Run the trials that `searcher` suggests once there is room for one, until it has no more.

    Returns: settings of the trials whose processes were lost, and why, the last one last.
    """
    with cluster(), tempfile.TemporaryDirectory(prefix="toque-sweep-") as folder:
        resources.wait_for_room()
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(SweepTrial, training=training), resources.placement_group()
            ),
            tune_config=tune.TuneConfig(
                max_concurrent_trials=resources.concurrency,
                search_alg=searcher,
                num_samples=-1,  # until the searcher says that all are over
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                name="sweep",
                verbose=0,
                callbacks=[*callbacks],
                stop=stopper,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        with interruptible():
            results = tuner.fit()
        trials = [results[number] for number in range(len(results))]
        return [(trial.config or {}, _last_line(trial.error)) for trial in trials if trial.error is not None]


def _last_line(error: BaseException) -> str:
    """Last line of a trial's error, which follows the traceback that Ray puts into it."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


@dataclass(frozen=True, slots=True)
class TabularTraining:
    """Training of legs of the tabular network on rows that were prepared once.

    threads, gpus: what the process has; stacked: whether legs are stacks, of one trial too.
    """

    prepared: Prepared
    states: TrialStates
    threads: int
    gpus: float
    stacked: bool = False

    def results(self, config: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Train a leg, and yield the metrics of each epoch once its state is saved."""
        leg: Leg = config[LEG]
        meter, numbers = ResourceMeter(self._device, self.gpus), list(leg.trials)
        try:
            with torch_threads(self.threads):
                trainer = self._trainer(leg)
            while numbers:
                with torch_threads(self.threads):
                    results = self._epoch(leg, trainer, meter)
                numbers = trainer.numbers
                if numbers and trainer.epochs >= leg.until:
                    numbers = []
                yield {RESULTS: list(results.items()), "done": not numbers}
        except Exception as error:  # noqa: BLE001 - what is wrong with these settings must not stop the others
            reason = str(error) if isinstance(error, TrainingError) else f"{type(error).__name__}: {error}"
            yield {RESULTS: [(number, reason) for number in numbers], "done": True}

    @property
    def _device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    def _trainer(self, leg: Leg) -> StackedTrainer | SingleTrainer:
        trainer = (StackedTrainer if self.stacked else SingleTrainer)(self.prepared, leg.trials, self._device)
        if leg.since:
            trainer.resume(self.states.load(leg.sources, leg.since))
        return trainer

    def _epoch(
        self, leg: Leg, trainer: StackedTrainer | SingleTrainer, meter: ResourceMeter
    ) -> dict[int, Result]:
        count = len(trainer.numbers)
        epochs = trainer.run_epoch()
        finished = set(trainer.finished())
        trainer.keep([number for number in trainer.numbers if number not in finished])
        if trainer.numbers:
            self.states.save(leg, trainer.epochs, trainer.state())
        used = meter.lap()
        share = asdict(ResourceUse(used.cpu_s / count, used.gpu_s / count, used.energy_j / count))
        return {
            number: {**metrics_of(epoch), **share, FINISHED: number in finished}
            if isinstance(epoch, Epoch)
            else epoch
            for number, epoch in epochs.items()
        }


class SingleTrainer:
    """Trains the network of one trial, with every setting that it can have, as `StackedTrainer` trains several."""

    def __init__(self, prepared: Prepared, trials: Mapping[int, TabularParams], device: str) -> None:
        ((number, settings),) = trials.items()
        self.numbers = [number]
        self._number = number
        self._trainer = new_trainer(prepared, settings, SingleProcess(device))

    @property
    def epochs(self) -> int:
        """Number of epochs that the trial has been trained."""
        return len(self._trainer.epochs)

    def finished(self) -> list[int]:
        """Number of the trial if its schedule is done, or its patience has run out."""
        return self.numbers if self._trainer.finished else []

    def run_epoch(self) -> dict[int, Epoch | str]:
        """Train the trial for one epoch. Raises: TrainingDiverged."""
        return {self._number: self._trainer.run_epoch()}

    def keep(self, numbers: Sequence[int]) -> None:
        """Let the trial stay, or end."""
        self.numbers = list(numbers)

    def state(self) -> Snapshot:
        """State of the trial, with its fact "trials"."""
        tensors, facts = self._trainer.state()
        return Snapshot(tensors, {**facts, "trials": [{"number": self._number, "epochs": facts["epochs"]}]})

    def resume(self, states: Sequence[Snapshot]) -> None:
        """Continue from the state of this trial or another, under the settings of this one."""
        self._trainer.resume(states[0].tensors, states[0].facts)
