"""The fault matrix of every public verb that writes, beside the durable ones: each request of each suffers each fault, or is a process's last.

Afterwards journals fold, files are readable, nothing is there twice or half, and the same verb again succeeds, or is refused because it took
effect: what is visible is the same as without a fault.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conditions.faults import Verb, run_cells
from tests.faults import feature_worlds, function_worlds, public_verbs, registry_worlds
from tests.functions.runtime import test_fault_matrix
from toque.registry.store import FolderStore

VERBS: list[Verb[Any]] = [*registry_worlds.VERBS, *feature_worlds.VERBS, *function_worlds.VERBS]
WORLDS = {verb.name for verb in VERBS}
CELLS_IN_CI = 2


@pytest.fixture(autouse=True)
def _redis(matrix_redis: None) -> None:
    """Every world may use it."""


def run(verb: Verb[Any], folder: Path, cells: dict[str, tuple[int, int]], sample: int | None) -> None:
    matrix = run_cells(verb, lambda number: FolderStore(folder / str(number)), sample=sample)
    cells[verb.name] = matrix.cells, matrix.all_cells
    assert matrix.writes, "no request of the verb writes: its world has nothing for it to do"
    assert not matrix.failures, matrix


@pytest.mark.parametrize("verb", VERBS, ids=str)
def test_a_verb_is_whole_or_not_at_all_at_a_sample_of_faults(
    verb: Verb[Any], tmp_path: Path, cells: dict[str, tuple[int, int]]
) -> None:
    run(verb, tmp_path, cells, CELLS_IN_CI)


@pytest.mark.proof
@pytest.mark.timeout(1_800)  # an erasure has 300 cells, in each of which Redis rewrites its files twice
@pytest.mark.parametrize("verb", VERBS, ids=str)
def test_a_verb_is_whole_or_not_at_all_whichever_request_fails(
    verb: Verb[Any], tmp_path: Path, cells: dict[str, tuple[int, int]]
) -> None:
    run(verb, tmp_path, cells, None)


def test_every_public_verb_that_writes_has_a_world_or_a_reason() -> None:
    verbs = public_verbs.writing_methods() | public_verbs.writing_functions()
    missing = verbs - WORLDS - set(public_verbs.LEFT_OUT)
    assert not missing, f"give these a world in tests/faults, or a reason in LEFT_OUT: {sorted(missing)}"


def test_every_world_and_every_reason_is_of_a_verb_that_there_is() -> None:
    verbs = public_verbs.writing_methods() | public_verbs.writing_functions() | {"back_up"}
    assert set(public_verbs.LEFT_OUT) | WORLDS <= verbs
    assert not set(public_verbs.LEFT_OUT) & WORLDS


def test_every_route_and_command_that_writes_goes_through_verbs_of_the_matrix() -> None:
    assert public_verbs.writing_routes() == set(public_verbs.ROUTES)
    assert public_verbs.commands() == set(public_verbs.COMMANDS)
    through = {
        name
        for table in (public_verbs.ROUTES, public_verbs.COMMANDS)
        for names in table.values()
        for name in names
    }
    assert through <= WORLDS | set(public_verbs.LEFT_OUT)


def test_durable_verbs_are_in_the_matrix_of_the_durable_functions() -> None:
    durable = {verb.name for verb in test_fault_matrix.VERBS}
    assert {"submit", "redrive", "cancel", "signal", "delete", "publish"} <= durable
