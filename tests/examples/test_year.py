"""The replayed year of flights: what the policy is worth beside other plans, and fifty kills that change no decision.

Both take minutes and are left to `make prove`; `python -m examples.flights.year` prints the table of all plans.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.flights.plans import BUDGET, DAY, END, FIRST, Plan, prepare
from examples.flights.year import Outcome, Year, outcome, story
from toque.registry import Table
from toque.registry.store import FolderStore

KILLS, CHANCE = 50, 0.015


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder, one_in=4)
    return folder


def killed_by_chance(write: Callable[..., Any], rng: np.random.Generator) -> Callable[..., Any]:
    """Wrap a write, so that some kill the process just before or just after it, with every thread that it has."""

    def maybe_die() -> None:
        if rng.random() < CHANCE:
            os.kill(os.getpid(), signal.SIGKILL)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        maybe_die()
        done = write(*args, **kwargs)
        maybe_die()
        return done

    return wrapped


def live(folder: Path, days: int, seed: int | None) -> None:
    """Replay so many days in this process, which some write may kill; none if seed is None."""
    if seed is not None:
        rng = np.random.default_rng(seed)
        for where, names in ((FolderStore, ("create", "put", "upload")), (Table, ("append", "overwrite"))):
            for name in names:
                setattr(where, name, killed_by_chance(getattr(where, name), rng))
    of_days(folder, days).replay()


def of_days(folder: Path, days: int) -> Year:
    return Year(folder, "policy", last=min(FIRST + days * DAY, END))


def killed_and_resumed(prepared: Path, folder: Path, days: int, kills: int) -> Year:
    """Replay so many days in processes of their own, killed so often, each resumed by the next."""
    shutil.copytree(prepared, folder)
    spawned, died, lived = get_context("spawn"), 0, False
    while not lived:
        process = spawned.Process(target=live, args=(folder, days, died if died < kills else None))
        process.start()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        lived = process.exitcode == 0
        died += not lived
    assert died == kills
    return of_days(folder, days)


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


@pytest.mark.proof
@pytest.mark.timeout(7200)
def test_fifty_kills_through_the_year_change_no_alarm_no_retrain_and_no_decision(
    prepared: Path, tmp_path: Path
) -> None:
    undisturbed = killed_and_resumed(prepared, tmp_path / "undisturbed", 275, 0)
    killed = killed_and_resumed(prepared, tmp_path / "killed", 275, KILLS)
    assert story(killed) == story(undisturbed)
