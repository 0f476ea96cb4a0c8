"""The replayed year of flights: what the policy is worth beside other plans, and fifty kills that change no decision.

Both take minutes and are left to `make prove`; `python -m examples.flights.year` prints the table of all plans.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.flights.plans import BUDGET, DAY, END, FIRST, Plan, prepare
from examples.flights.year import Outcome, Year, outcome, story
from toque.registry import Table
from toque.registry.store import FolderStore

KILLS = 50


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder, one_in=4)
    return folder


class KilledError(BaseException):
    """The process died."""


class WriteKiller:
    """Kills the replay by chance just before or just after a write, and lets the dead write nothing more. chance: of each.

    dead: whether it was killed and not yet resumed; a library may make an error of what its thread raised, which would be recorded.
    """

    def __init__(self, most: int, chance: float) -> None:
        self.rng, self.left, self.chance, self.kills = np.random.default_rng(0), most, chance, 0
        self.dead = False

    def around(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def maybe(*args: Any, **kwargs: Any) -> Any:
            self._maybe()
            done = write(*args, **kwargs)
            self._maybe()
            return done

        return maybe

    def _maybe(self) -> None:
        if self.dead:
            raise KilledError
        if self.left and self.rng.random() < self.chance:
            self.left -= 1
            self.kills += 1
            self.dead = True
            raise KilledError


def replayed(prepared: Path, folder: Path, plan: Plan) -> Outcome:
    shutil.copytree(prepared, folder)
    year = Year(folder, plan)
    return outcome(year, year.replay())


@pytest.mark.proof
@pytest.mark.timeout(7200)
def test_the_policy_serves_as_well_as_retraining_every_week_with_few_retrains(
    prepared: Path, tmp_path: Path
) -> None:
    policy, weekly = (replayed(prepared, tmp_path / plan, plan) for plan in ("policy", "weekly"))
    assert policy.retrains <= BUDGET < 8
    assert policy.loss <= 1.02 * weekly.loss
    assert policy.cpu_s < weekly.cpu_s / 2


def killed_and_resumed(prepared: Path, folder: Path, days: int, killer: WriteKiller) -> Year:
    """Replay so many days; each time it is killed, a new replay resumes as a new process would."""
    shutil.copytree(prepared, folder)
    with pytest.MonkeyPatch.context() as patch:
        for where, names in ((FolderStore, ("create", "put", "upload")), (Table, ("append", "overwrite"))):
            for name in names:
                patch.setattr(where, name, killer.around(getattr(where, name)))
        while True:
            killer.dead = False
            year = Year(folder, "policy", last=min(FIRST + days * DAY, END))
            try:
                year.replay()
            except BaseException:
                if not killer.dead:
                    raise
            else:
                return year


@pytest.mark.proof
@pytest.mark.timeout(7200)
def test_fifty_kills_through_the_year_change_no_alarm_no_retrain_and_no_decision(
    prepared: Path, tmp_path: Path
) -> None:
    undisturbed = killed_and_resumed(prepared, tmp_path / "undisturbed", 275, WriteKiller(0, 0.0))
    killer = WriteKiller(KILLS, 0.015)
    killed = killed_and_resumed(prepared, tmp_path / "killed", 275, killer)
    assert killer.kills == KILLS
    assert story(killed) == story(undisturbed)
