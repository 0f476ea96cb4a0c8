"""How a step is computed, in pieces or compiled, is no matter of what it computes."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from tests.functions.training.recipes import FAST, Stack, trainer
from tests.functions.training.tabular_setup import COLUMNS, examples
from tests.functions.training.tabular_setup import FAST as TABULAR
from toque.functions.training import TrainingError
from toque.functions.training.checkpoints.saved import Checkpoints
from toque.functions.training.loop.keeping import Keeper
from toque.functions.training.loop.process_group import SingleProcess
from toque.functions.training.loop.training_loop import Compiled, Trainer, train
from toque.functions.training.tabular.fitting import new_trainer, prepare


def close(one: Trainer, other: Trainer) -> None:
    """Weights after the same steps, up to rounding."""
    wanted = other.net.state_dict()
    for name, value in one.net.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "pieces", [2, 7, 50, 1_000]
)  # of 50 rows: even, uneven, single, and more than there are
def test_a_step_in_micro_batches_equals_the_whole_step(pieces: int) -> None:
    whole, parts = trainer(), trainer(FAST.model_copy(update={"accumulate": pieces}))
    for _ in range(2):
        assert parts.run_epoch().train_loss == pytest.approx(whole.run_epoch().train_loss, rel=1e-4)
    close(parts, whole)


def test_a_tabular_step_in_micro_batches_equals_the_whole_step() -> None:
    calm = TABULAR.model_copy(update={"dropout": 0.0, "unknown_rate": 0.0})
    prepared = prepare(examples(1_000), COLUMNS, calm)
    whole, parts = (
        new_trainer(prepared, calm.model_copy(update={"accumulate": pieces})) for pieces in (1, 3)
    )
    for each in (whole, parts):
        each.run_epoch()
    close(parts, whole)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "pieces", [1, 4, 7, 1_000]
)  # of 50 rows: whole, even, uneven, and more than there are
def test_no_pass_over_validation_rows_is_larger_than_a_piece_of_a_step(pieces: int, workers: int) -> None:
    group = SingleProcess()
    group.size = workers
    made = trainer(FAST.model_copy(update={"accumulate": pieces}), group)
    rows: dict[bool, list[int]] = {True: [], False: []}
    made.net.register_forward_pre_hook(lambda _, inputs: rows[torch.is_grad_enabled()].append(len(inputs[0])))
    made.run_epoch()
    assert max(rows[False]) == max(rows[True]) == -(-50 // workers // pieces)
    assert sum(rows[False]) == -(-made.task.valid_rows // workers)


def test_gradients_are_averaged_after_the_last_micro_batch_only(monkeypatch) -> None:
    seen: list[bool] = []
    group = SingleProcess()
    micro_step = group.micro_step
    monkeypatch.setattr(
        group, "micro_step", lambda module, *, last: seen.append(last) or micro_step(module, last=last)
    )
    trainer(FAST.model_copy(update={"accumulate": 4}), group).run_epoch()
    assert seen == [False, False, False, True] * 8


@pytest.fixture
def quick(monkeypatch) -> None:
    """torch.compile with its frontend but without the C++ compilation, which takes half a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


@pytest.mark.usefixtures("quick")
def test_a_compiled_training_resumes_uncompiled_with_the_same_result(context) -> None:
    fast = FAST.model_copy(update={"compiled": True, "accumulate": 2})
    checkpoints = Checkpoints.of(context.store, {})
    keeper = Keeper(SingleProcess(), checkpoints)
    first, undisturbed = trainer(fast), trainer(FAST.model_copy(update={"accumulate": 2}))
    assert type(first._stepped).__name__ == "Compiled"
    for _ in range(2):
        first.run_epoch()
        keeper.save(first)
    keeper.wait()
    train(undisturbed, SingleProcess())
    assert set(first.state()[0]) == set(undisturbed.state()[0])
    resumed = trainer()
    train(resumed, SingleProcess(), keeper=Keeper(SingleProcess(), checkpoints))
    close(resumed, undisturbed)


def test_blocks_that_hold_most_weights_are_compiled_one_by_one_other_networks_whole(monkeypatch) -> None:
    class Listed(nn.Module):
        def __init__(self, layers: list[nn.Module], width: int) -> None:
            super().__init__()
            self.head, self.layers = nn.Linear(width, width), nn.ModuleList(layers)

    seen: list[object] = []

    def note(what: Any, **_: object) -> Any:
        seen.append(getattr(what, "__self__", what))
        return what

    monkeypatch.setattr(torch, "compile", note)
    blocks = Stack(64)
    Compiled(blocks)
    assert seen == [*blocks.blocks]
    for whole in (
        nn.Sequential(nn.Linear(2, 2)),
        Listed([nn.Linear(8, 8), nn.Linear(8, 8)], 4),  # single layers
        Listed([nn.Sequential(nn.Linear(2, 2))], 8),  # a small list beside a large body
    ):
        seen.clear()
        Compiled(whole)
        assert seen == [whole]


@pytest.mark.parametrize("recompute", [False, True])
def test_alike_blocks_share_a_program_also_where_they_compute_their_activations_again(
    monkeypatch, *, recompute: bool
) -> None:
    programs: list[Any] = []

    def kept(program: Any, _: object) -> Any:
        programs.append(program)
        return program.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=kept))
    torch.compiler.reset()
    way = FAST.model_copy(update={"recompute": recompute})
    compiled, plain = trainer(way.model_copy(update={"compiled": True})), trainer(way)
    for each in (compiled, plain):
        each._pass_over_training_rows()
    close(compiled, plain)
    assert len(programs) == 1


def test_a_failed_compilation_is_an_error_with_the_remedy(monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no compiler on this machine")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    compiled = trainer(FAST.model_copy(update={"compiled": True}))
    with pytest.raises(TrainingError, match=r"cannot compile Stack here \(.*; train with compiled=False"):
        compiled.run_epoch()


@pytest.mark.proof
def test_compiled_steps_equal_uncompiled_steps() -> None:
    plain = trainer()
    compiled = trainer(FAST.model_copy(update={"compiled": True}))
    for _ in range(2):
        plain.run_epoch()
        compiled.run_epoch()
    close(compiled, plain)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_micro_batches_and_compiled_steps_equal_the_steps() -> None:
    ways = [FAST.model_copy(update=how) for how in ({}, {"accumulate": 3}, {"compiled": True})]
    trainers = [trainer(way, SingleProcess("cuda")) for way in ways]
    losses = [[each.run_epoch().valid_loss for _ in range(2)] for each in trainers]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[2] == pytest.approx(losses[0], rel=1e-3)
