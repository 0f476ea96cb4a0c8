"""A training that was interrupted ends as if it had not been."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from functions import Context
from functions.training import train_tabular
from functions.training.checkpoints import Checkpoints, Retention
from functions.training.loop.training_loop import Epoch
from functions.training.tabular.fitting import Fitted, fit, prepare
from tests.functions.training.tabular_setup import COLUMNS, FAST, NAMES, examples

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
            fit(prepared, FAST, on_epoch=cut, checkpoints=checkpoints)
    epochs: list[int] = []
    resumed = fit(prepared, FAST, on_epoch=lambda epoch: epochs.append(epoch.number), checkpoints=checkpoints)
    assert equal(resumed, undisturbed)
    assert resumed.metrics == undisturbed.metrics
    assert epochs == list(range(LAST + 1))


def test_two_checkpoints_are_kept_and_a_damaged_one_is_passed_over(context: Context) -> None:
    prepared = prepare(examples(), COLUMNS, FAST)
    checkpoints = Checkpoints.of(context.store, {})
    undisturbed = fit(prepared, FAST, checkpoints=checkpoints)
    before, last = sorted(context.store.list(checkpoints.folder))
    data = bytearray(context.store.get(last))
    data[-1] ^= 1
    context.store.put(last, bytes(data))
    found = checkpoints.latest()
    assert found is not None
    assert len(found.facts["epochs"]) == LAST
    assert before.endswith(f"{LAST - 1:06d}.safetensors")
    assert equal(fit(prepared, FAST, checkpoints=checkpoints), undisturbed)
    checkpoints.drop()
    assert checkpoints.latest() is None


def test_checkpoints_are_named_by_what_determines_the_weights(context: Context) -> None:
    folders = {
        Checkpoints.of(context.store, what).folder for what in ({"lr": 1}, {"lr": 2}, {"lr": 1, "n": 0})
    }
    assert len(folders) == 3
    assert Checkpoints.of(context.store, {"a": 1, "b": 2}) == Checkpoints.of(context.store, {"b": 2, "a": 1})


losses = st.lists(st.floats(0, 1), min_size=1, max_size=9)


@given(losses, st.integers(1, 3), st.integers(0, 3))
def test_only_the_last_and_the_best_checkpoints_are_kept(valid: list[float], last: int, best: int) -> None:
    keep, there = Retention(last, best), set()
    for epoch in range(len(valid)):
        there = (there | {epoch}) - set(keep.dropped(epoch, valid))
        so_far = valid[: epoch + 1]
        lowest = sorted(range(epoch + 1), key=lambda each: (so_far[each], each))[:best]
        assert there == {*range(max(0, epoch + 1 - last), epoch + 1), *lowest}


def test_the_best_checkpoints_stay_after_the_end_and_are_complete(context: Context) -> None:
    prepared = prepare(examples(), COLUMNS, FAST)
    checkpoints = Checkpoints.of(context.store, {}, Retention(last=1, best=2))
    fitted = fit(prepared, FAST, checkpoints=checkpoints)
    valid = [epoch.valid_loss for epoch in fitted.epochs]
    wanted = sorted(sorted(range(len(valid)), key=lambda each: valid[each])[:2])
    checkpoints.drop()
    kept = sorted(context.store.list(checkpoints.folder))
    assert [int(key[-18:-12]) for key in kept] == wanted
    assert equal(
        fit(prepared, FAST, checkpoints=checkpoints), fitted
    )  # asked again it goes on, and ends alike


def test_a_training_that_ended_well_leaves_no_checkpoints(context, training_set):
    train_tabular("late", training_set, **NAMES, params=FAST)
    assert list(context.store.list("checkpoints/")) == []
