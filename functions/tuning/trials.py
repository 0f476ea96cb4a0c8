"""Trials that Ray Tune runs: an actor trains, the driving process keeps a run of the registry for each."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from typing import Any

from ray import tune

from toque.functions.model_formats.load import torch_threads
from toque.functions.runtime.errors import NoRoom
from toque.functions.runtime.process import lower_priority
from toque.functions.runtime.run.cluster import AWAY_FROM_SERVING
from toque.functions.runtime.run.room import wait_for_room
from toque.functions.training.cost import ResourceMeter
from toque.functions.training.errors import TrainingError
from toque.functions.training.loop.keeping import interruptible
from toque.functions.training.loop.process_group import SingleProcess
from toque.functions.training.loop.training_loop import Trainer
from toque.functions.training.tabular.fitting import Prepared, new_trainer
from toque.functions.training.tabular.params import TabularParams
from toque.functions.tuning.ray_tune import (
    SINCE,
    UNTIL,
    AshaSearcher,
    PbtScheduler,
    TrialStates,
    trial_and_epochs,
    tune_checkpoint,
)
from toque.functions.tuning.tracking import TrialTracker
from toque.functions.tuning.trial_states import EPOCHS, FINISHED, METRIC, PbtState, Snapshot, metrics_of


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


def run_asha(
    prepared: Prepared,
    searcher: AshaSearcher,
    states: TrialStates,
    tracker: TrialTracker,
    resources: TrialResources,
) -> None:
    """Run the trials that `searcher` chooses, within the tracker's limits; the tracker records how they ended."""
    trainable = tune.with_parameters(AshaTrial, states=states, prepared=prepared, resources=resources)
    config = tune.TuneConfig(
        metric=METRIC,
        mode="min",
        max_concurrent_trials=resources.concurrency,
        search_alg=searcher,
        num_samples=-1,  # until the searcher says that all are over
        reuse_actors=True,
    )
    _fit(trainable, config, tracker, resources)


def run_pbt(
    prepared: Prepared, scheduler: PbtScheduler, count: int, tracker: TrialTracker, resources: TrialResources
) -> None:
    """Run the trials of a population of `count` that are not over; the tracker records how they ended."""
    numbers = [number for number in range(count) if number not in tracker.done]
    if not numbers:
        return
    trainable = tune.with_parameters(
        PbtTrial, pbt_state=scheduler.pbt_state, prepared=prepared, resources=resources
    )
    config = tune.TuneConfig(
        metric=METRIC, mode="min", reuse_actors=True, scheduler=scheduler
    )  # the scheduler has to know all trials, and limits how many train at a time
    _fit(trainable, config, tracker, resources, {"point": tune.grid_search(numbers)})


def _fit(
    trainable: Any,
    config: tune.TuneConfig,
    tracker: TrialTracker,
    resources: TrialResources,
    space: dict[str, Any] | None = None,
) -> None:
    """Run the sweep on Tune once there is room for a trial, and end every run of it, however the sweep ended."""
    resources.wait_for_room()
    errors: dict[int, str] = {}
    ended = False
    with tempfile.TemporaryDirectory(prefix="toque-sweep-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources.placement_group()),
            param_space=space or {},
            tune_config=config,
            run_config=tune.RunConfig(
                storage_path=folder,
                name="sweep",
                verbose=0,
                callbacks=[tracker],
                stop=BudgetStopper(tracker),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        try:
            with interruptible():
                results = tuner.fit()
            for result in (results[number] for number in range(len(results))):
                if result.error is not None:
                    errors[(result.config or {})["point"]] = _last_line(result.error)
            ended = True
        finally:
            tracker.close(errors, ended=ended)


class BudgetStopper(tune.Stopper):
    """Stopper that ends a sweep once it has reached one of its limits."""

    def __init__(self, tracker: TrialTracker) -> None:
        self._tracker = tracker

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002 - as Tune calls it
        """Return False: limits end the sweep, never a single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether to end all trials, and begin no others."""
        return self._tracker.limit_reached()


class TabularTrial(tune.Trainable):
    """Tune's actor of a trial, one epoch a step."""

    def setup(self, config: dict[str, Any], *, prepared: Prepared, resources: TrialResources) -> None:  # type: ignore[override]  # with_parameters passes the others
        """Begin with the settings in `config`."""
        lower_priority()
        self._prepared, self._resources = prepared, resources
        self._trainer = self._begin(config)

    def step(self) -> dict[str, Any]:
        """Train one epoch and report its metrics."""
        with torch_threads(max(1, int(self._resources.cpus_per_trial))):
            epoch = self._trainer.run_epoch()
        return {
            **metrics_of(epoch),
            EPOCHS: len(self._trainer.epochs),
            **asdict(self._meter.lap()),
            FINISHED: self._trainer.finished,
            "done": self._trainer.finished,
        }

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Let Tune use this actor for the next trial."""
        self._trainer = self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> Trainer:
        device = "cuda" if self._resources.gpus_per_trial else "cpu"
        self._meter = ResourceMeter(device, self._resources.gpus_per_trial)
        settings = TabularParams.model_validate(config["settings"])
        return new_trainer(self._prepared, settings, SingleProcess(device))


class AshaTrial(TabularTrial):
    """Actor of an ASHA trial, which trains up to a rung and resumes from there in another actor."""

    def setup(self, config: dict[str, Any], *, states: TrialStates, **others: Any) -> None:  # type: ignore[override]  # the same
        """Begin with the settings in `config`, from the state saved after the epochs trained before."""
        self._states = states
        super().setup(config, **others)

    def step(self) -> dict[str, Any]:
        """Train one epoch, and save the state after it."""
        result = super().step()
        if not result[FINISHED]:
            self._states.save(self.config["point"], self.config["settings"], Snapshot(*self._trainer.state()))
        return result | {"done": result[FINISHED] or result[EPOCHS] >= self.config[UNTIL]}

    def _begin(self, config: dict[str, Any]) -> Trainer:
        trainer = super()._begin(config)
        if config[SINCE]:
            saved = self._states.load(config["point"], config[SINCE])
            trainer.resume(saved.tensors, saved.facts)
        return trainer


class PbtTrial(TabularTrial):
    """Actor of a population's member, which can pause, and resume with another's weights under new settings."""

    def setup(  # type: ignore[override]  # with_parameters passes the others
        self, config: dict[str, Any], *, pbt_state: PbtState, **others: Any
    ) -> None:
        """Begin with the settings in `config`."""
        self._pbt_state = pbt_state
        super().setup(config, **others)

    def save(self, checkpoint_dir: str | None = None) -> Any:  # noqa: ARG002 - as Tune calls it
        """Save the state of training in the store, which all nodes reach."""
        number, epochs = self.config["point"], len(self._trainer.epochs)
        self._pbt_state.save(number, epochs, Snapshot(*self._trainer.state()))
        return tune_checkpoint(number, epochs, dict(self._last_result or {}))

    def restore(self, checkpoint_path: Any) -> None:
        """Resume from a state that this member or another saved, under the settings of this one."""
        saved = self._pbt_state.load(*trial_and_epochs(checkpoint_path))
        self._trainer.resume(saved.tensors, saved.facts)


def _last_line(error: BaseException) -> str:
    """Last line of a trial's error, which follows the traceback that Ray puts into it."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
