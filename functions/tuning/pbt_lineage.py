"""Lineage of the weights of a population's winner: from member to member, back to the first epoch."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from toque.functions.training.params import TabularParams
from toque.functions.tuning.space import Trial


class Stretch(BaseModel):
    """Epochs from `begin` to before `end` (from 0) that one trial trained with `params`."""

    model_config = ConfigDict(frozen=True)

    trial: int
    run_id: str
    begin: int
    end: int
    params: TabularParams


def lineage(trials: Mapping[int, Trial], winner: int) -> list[Stretch]:
    """Find the stretches of training that led to the best epoch of `trials[winner]`, the earliest first.

    trials: by their numbers. Each stretch begins with the weights of the one before; the last one ends with the winner's.
    Raises: ValueError if the winner has no best epoch.
    """
    best = trials[winner].best_epoch
    if best is None:
        raise ValueError(f"trial {winner} has no best epoch, so its weights have no lineage")
    number, end, stretches = winner, best + 1, list[Stretch]()
    while True:
        trial = trials[number]
        exploits = [exploit for exploit in trial.exploits if exploit.epoch < end]
        begin, params = (exploits[-1].epoch, exploits[-1].params) if exploits else (0, trial.params)
        stretches.insert(0, Stretch(trial=number, run_id=trial.run_id, begin=begin, end=end, params=params))
        if not exploits:
            return stretches
        number, end = exploits[-1].trial, begin
