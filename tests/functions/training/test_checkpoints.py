"""A training that was interrupted ends as if it had not been."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import Metadata

from tests.functions.training.tabular_setup import COLUMNS, FAST, NAMES, examples
from toque.functions import Context
from toque.functions.training import train_tabular
from toque.functions.training.checkpoints.saved import Checkpoints, Index, Retention, Saved
from toque.functions.training.loop.keeping import Keeper
from toque.functions.training.loop.process_group import SingleProcess
from toque.functions.training.tabular.fitting import Fitted, fit, prepare
from toque.functions.training.trainer import Epoch
from toque.registry import Conflict, ObjectStore
from toque.registry.journal.heads import journal_counts

LAST = 3


class Interrupted(Exception):  # noqa: N818 - says what happens
    """The power went."""


def weights(fitted: Fitted) -> dict[str, torch.Tensor]:
    return fitted.scorer.state_dict()


def equal(one: Fitted, other: Fitted) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("cut_after", range(LAST + 1))
def test_a_training_resumed_after_any_epoch_ends_with_the_same_weights(
    context: Context, cut_after: int
) -> None:
    prepared = prepare(examples(), COLUMNS, FAST)
    undisturbed = fit(prepared, FAST)
    checkpoints = Checkpoints.of(context.store, {"cut": cut_after})

    def cut(epoch: Epoch) -> None:
        if epoch.number == cut_after:
            raise Interrupted

    for _ in range(2):  # before the epoch is saved, every time it is tried: it begins after the one before
        with pytest.raises(Interrupted):
            fit(prepared, FAST, on_epoch=cut, keeper=Keeper(SingleProcess(), checkpoints))
    epochs: list[int] = []
    resumed = fit(
        prepared,
        FAST,
        on_epoch=lambda epoch: epochs.append(epoch.number),
        keeper=Keeper(SingleProcess(), checkpoints),
    )
    assert equal(resumed, undisturbed)
    assert resumed.metrics == undisturbed.metrics
    assert epochs == list(range(LAST + 1))


def damage(store: ObjectStore, key: str) -> None:
    data = bytearray(store.get(key))
    data[-1] ^= 1
    store.put(key, bytes(data))


@pytest.mark.parametrize("what", ["index", "part"])
def test_two_checkpoints_are_kept_and_a_damaged_one_is_passed_over(context: Context, what: str) -> None:
    prepared = prepare(examples(), COLUMNS, FAST)
    checkpoints = Checkpoints.of(context.store, {})
    undisturbed = fit(prepared, FAST, keeper=Keeper(SingleProcess(), checkpoints))
    last, before = checkpoints.open()
    damage(context.store, last.index if what == "index" else last.files[0])
    assert before.step < last.step
    epochs: list[int] = []
    resumed = fit(
        prepared,
        FAST,
        on_epoch=lambda epoch: epochs.append(epoch.number),
        keeper=Keeper(SingleProcess(), checkpoints),
    )
    assert equal(resumed, undisturbed)
    assert len(checkpoints.open()) == 2
    checkpoints.drop()
    assert list(context.store.list(checkpoints.folder)) == []


def test_a_process_that_was_thought_dead_cannot_commit(context: Context) -> None:
    prepared, ours, theirs = (
        prepare(examples(), COLUMNS, FAST),
        *(Checkpoints.of(context.store, {}) for _ in range(2)),
    )
    ours.open()
    fit(prepared, FAST, keeper=Keeper(SingleProcess(), theirs))
    with pytest.raises(Conflict):
        ours.commit(99, 0.1, Index(Metadata({}), {}))


def test_what_a_kill_left_beside_the_checkpoints_is_deleted_at_the_next_start(context: Context) -> None:
    checkpoints = Checkpoints.of(context.store, {})
    context.store.put(f"{checkpoints.parts}half.bin", b"1")
    fit(prepare(examples(), COLUMNS, FAST), FAST, keeper=Keeper(SingleProcess(), checkpoints))
    named = {file for saved in checkpoints.open() for file in (saved.index, *saved.files)}
    assert set(context.store.list(checkpoints.parts)) == named
    assert not any(
        path.startswith("checkpoints/") for path in journal_counts(context.store)
    )  # no history to lose


def test_checkpoints_are_named_by_what_determines_the_weights(context: Context) -> None:
    folders = {
        Checkpoints.of(context.store, what).folder for what in ({"lr": 1}, {"lr": 2}, {"lr": 1, "n": 0})
    }
    assert len(folders) == 3
    assert Checkpoints.of(context.store, {"a": 1, "b": 2}) == Checkpoints.of(context.store, {"b": 2, "a": 1})


losses = st.lists(st.floats(0, 1), min_size=1, max_size=9)


@given(losses, st.integers(1, 3), st.integers(0, 3))
def test_only_the_last_and_the_best_checkpoints_are_kept(valid: list[float], last: int, best: int) -> None:
    keep, there = Retention(last, best), []
    for step, loss in enumerate(valid):
        there = keep.kept([*there, Saved(step=step, loss=loss, index="", digest="", files=())])
        lowest = sorted(range(step + 1), key=lambda each: (valid[each], each))[:best]
        assert {saved.step for saved in there} == {*range(max(0, step + 1 - last), step + 1), *lowest}


def test_the_best_checkpoints_stay_after_the_end_and_are_complete(context: Context) -> None:
    prepared = prepare(examples(), COLUMNS, FAST)
    checkpoints = Checkpoints.of(context.store, {}, Retention(last=1, best=2))
    fitted = fit(prepared, FAST, keeper=Keeper(SingleProcess(), checkpoints))
    valid = [epoch.valid_loss for epoch in fitted.epochs]
    checkpoints.drop()
    kept = checkpoints.open()
    assert sorted(each.loss for each in kept) == sorted(valid)[:2]
    assert len(list(context.store.list(checkpoints.parts))) == 4  # an index and a file each
    again = fit(prepared, FAST, keeper=Keeper(SingleProcess(), checkpoints))
    assert equal(again, fitted)  # a second start trains on from them


def test_a_training_that_ended_well_leaves_no_checkpoints(context, training_set):
    train_tabular("late", training_set, **NAMES, params=FAST)
    assert list(context.store.list("checkpoints/")) == []
