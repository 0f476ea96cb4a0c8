"""Where the weights of a population's winner come from: from member to member, back to the first epoch."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from functions.training.params import TabularParams
from functions.tuning.space import Trial


class Stretch(BaseModel):
    """Epochs from `begin` to before `end` (from 0) that one trial trained with `params`."""

    model_config = ConfigDict(frozen=True)

    trial: int
    run_id: str
    begin: int
    end: int
    params: TabularParams


def descent(trials: Mapping[int, Trial], winner: int) -> list[Stretch]:
    """The stretches that led to the best epoch of `trials[winner]`, the first one first; trials: by their numbers.

    Trained one after the other, each from where the one before ended, they give its weights.
    Raises: ValueError if the winner has no best epoch.
    """
    best = trials[winner].best_epoch
    if best is None:
        raise ValueError(f"trial {winner} has no best epoch, so no weights to tell of")
    number, end, stretches = winner, best + 1, list[Stretch]()
    while True:
        trial = trials[number]
        taken = [exploit for exploit in trial.exploits if exploit.epoch < end]
        begin, params = (taken[-1].epoch, taken[-1].params) if taken else (0, trial.params)
        stretches.insert(0, Stretch(trial=number, run_id=trial.run_id, begin=begin, end=end, params=params))
        if not taken:
            return stretches
        number, end = taken[-1].trial, begin
