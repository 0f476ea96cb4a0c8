"""Trials on Ray Tune: an actor trains, the driving process keeps a run of the registry for each."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from typing import Any

from ray import tune

from functions.model_formats.torch_threads import torch_threads
from functions.runtime.run.cluster import NOT_WHERE_IT_SERVES
from functions.runtime.run.niceness import step_back
from functions.training.loop.cost import Meter
from functions.training.loop.interrupts import interruptible
from functions.training.loop.parallel import Alone
from functions.training.loop.training_loop import Trainer
from functions.training.params import TabularParams
from functions.training.tabular.fitting import Prepared, new_trainer
from functions.tuning.epoch_metrics import EPOCHS, FINISHED, METRIC, told_of
from functions.tuning.pbt_state import Generations
from functions.tuning.tracking import TrialTracker
from functions.tuning.tune_asha import SINCE, UNTIL, Halving, States
from functions.tuning.tune_pbt import Population, saved_as, which


@dataclass(frozen=True, slots=True)
class Room:
    """How many trials train at a time, and what each takes."""

    concurrency: int
    cpus_per_trial: float
    gpus_per_trial: float = 0.0

    def group(self) -> tune.PlacementGroupFactory:
        """What Tune asks Ray for, a trial."""
        return tune.PlacementGroupFactory(
            [{"CPU": self.cpus_per_trial, "GPU": self.gpus_per_trial}],
            bundle_label_selector=[NOT_WHERE_IT_SERVES],
        )


def run_halving(
    prepared: Prepared, halving: Halving, states: States, tracker: TrialTracker, room: Room
) -> None:
    """Run what `halving` says, within the tracker's limits; how the trials ended is in the tracker."""
    trainable = tune.with_parameters(RestingTrial, states=states, prepared=prepared, room=room)
    config = tune.TuneConfig(
        metric=METRIC,
        mode="min",
        max_concurrent_trials=room.concurrency,
        search_alg=halving,
        num_samples=-1,  # until it says that all are over
        reuse_actors=True,
    )
    _fit(trainable, config, tracker, room)


def run_population(
    prepared: Prepared, population: Population, count: int, tracker: TrialTracker, room: Room
) -> None:
    """Run those of a population of `count` that are not over, the same way."""
    numbers = [number for number in range(count) if number not in tracker.done]
    if not numbers:
        return
    trainable = tune.with_parameters(
        MemberTrial, generations=population.generations, prepared=prepared, room=room
    )
    config = tune.TuneConfig(
        metric=METRIC, mode="min", reuse_actors=True, scheduler=population
    )  # which has to know all of them, and lets as many train at a time as there is room
    _fit(trainable, config, tracker, room, {"point": tune.grid_search(numbers)})


def _fit(
    trainable: Any,
    config: tune.TuneConfig,
    tracker: TrialTracker,
    room: Room,
    space: dict[str, Any] | None = None,
) -> None:
    """Run the sweep, and end every run of it, however it ended."""
    errors: dict[int, str] = {}
    ended = False
    with tempfile.TemporaryDirectory(prefix="toque-sweep-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, room.group()),
            param_space=space or {},
            tune_config=config,
            run_config=tune.RunConfig(
                storage_path=folder,
                name="sweep",
                verbose=0,
                callbacks=[tracker],
                stop=Budget(tracker),
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


class Budget(tune.Stopper):
    """Ends a sweep that has reached one of its limits."""

    def __init__(self, tracker: TrialTracker) -> None:
        self._tracker = tracker

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002 - as Tune calls it
        """No single trial ends by it."""
        return False

    def stop_all(self) -> bool:
        """Whether to end all trials, and begin no others."""
        return self._tracker.over()


class TabularTrial(tune.Trainable):
    """One trial: an epoch a step."""

    def setup(self, config: dict[str, Any], *, prepared: Prepared, room: Room) -> None:  # type: ignore[override]  # with_parameters passes the others
        """Begin with the settings in `config`."""
        step_back()
        self._prepared, self._room = prepared, room
        self._trainer = self._begin(config)

    def step(self) -> dict[str, Any]:
        """Train one epoch."""
        with torch_threads(max(1, int(self._room.cpus_per_trial))):
            epoch = self._trainer.run_epoch()
        return {
            **told_of(epoch),
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
        device = "cuda" if self._room.gpus_per_trial else "cpu"
        self._meter = Meter(device, self._room.gpus_per_trial)
        settings = TabularParams.model_validate(config["settings"])
        return new_trainer(self._prepared, settings, Alone(device))


class RestingTrial(TabularTrial):
    """One that trains up to a rung, and goes on from there in another actor."""

    def setup(self, config: dict[str, Any], *, states: States, **held: Any) -> None:  # type: ignore[override]  # the same
        """Begin with the settings in `config`, from the state after the epochs that it has behind it."""
        self._states = states
        super().setup(config, **held)

    def step(self) -> dict[str, Any]:
        """Train one epoch, and keep the state after it."""
        told = super().step()
        if not told[FINISHED]:
            self._states.save(self.config["point"], self.config["settings"], self._trainer.snapshot())
        return told | {"done": told[FINISHED] or told[EPOCHS] >= self.config[UNTIL]}

    def _begin(self, config: dict[str, Any]) -> Trainer:
        trainer = super()._begin(config)
        if config[SINCE]:
            trainer.resume(self._states.load(config["point"], config[SINCE]))
        return trainer


class MemberTrial(TabularTrial):
    """One of a population: it can be put aside, and go on with another's weights under new settings."""

    def setup(  # type: ignore[override]  # with_parameters passes the others
        self, config: dict[str, Any], *, generations: Generations, **held: Any
    ) -> None:
        """Begin with the settings in `config`."""
        self._generations = generations
        super().setup(config, **held)

    def save(self, checkpoint_dir: str | None = None) -> Any:  # noqa: ARG002 - as Tune calls it
        """Put the state of training into the store, which all nodes reach."""
        number, epochs = self.config["point"], len(self._trainer.epochs)
        self._generations.save(number, epochs, self._trainer.snapshot())
        return saved_as(number, epochs, dict(self._last_result or {}))

    def restore(self, checkpoint_path: Any) -> None:
        """Go on from a state that this member or another saved, under the settings of this one."""
        self._trainer.resume(self._generations.load(*which(checkpoint_path)))


def _last_line(error: BaseException) -> str:
    """What a trial's error says at its end, after the traceback that Ray puts into it."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
