"""Checks of the encoder's kernels by Triton's interpreter: `TRITON_INTERPRET=1 python -m tests.kernels.interpreted_encoder [any]`."""

import os
import sys

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.encoder_gradients import greatest_gap, results_and_gradients
from toque.kernels import encoder
from toque.kernels.encoder import encode_linear, encode_linear_reference
from toque.kernels.encoder_cases import CASES, TOLERANCES, Case
from toque.kernels.encoder_triton import encode_linear_triton


def agrees(case: Case, seed: int = 0) -> None:
    wanted = results_and_gradients(encode_linear_reference, case, seed)
    got = results_and_gradients(encode_linear_triton, case, seed)
    again = results_and_gradients(encode_linear_triton, case, seed)
    for name, value in wanted.items():
        assert greatest_gap(value, got[name]) <= TOLERANCES[case.dtype], (case, name)
        assert torch.equal(got[name], again[name]), f"{name} of {case} differs from run to run"


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    case=st.builds(
        Case,
        rows=st.integers(0, 140),
        features=st.integers(0, 5),
        columns=st.integers(0, 4),
        hidden=st.integers(1, 40),
        bins=st.integers(1, 9),
        width=st.integers(1, 6),
        entries=st.integers(1, 20),
        dtype=st.sampled_from([torch.float32, torch.float64]),
    ).filter(lambda case: case.inputs > 0),
    seed=st.integers(0, 99),
)
def any_shape_agrees(case: Case, seed: int) -> None:
    agrees(case, seed)


def gradients_are_those_of_finite_differences() -> None:
    *encoded, table, weight, bias = Case(
        5, 2, 2, 3, bins=2, width=2, entries=3, dtype=torch.float64
    ).tensors()
    learnt = [each.requires_grad_() for each in (table, weight, bias)]
    assert torch.autograd.gradcheck(lambda *given: encode_linear_triton(*encoded, *given), learnt)


def a_frozen_weight_has_no_gradient() -> None:
    *encoded, table, weight, bias = Case(5, 2, 2, 3).tensors()
    encode_linear_triton(*encoded, table, weight, bias.requires_grad_()).sum().backward()
    assert table.grad is None
    assert weight.grad is None
    assert bias.grad is not None


def a_category_outside_the_table_makes_its_row_nan() -> None:
    for outside in (-1, 2 * 30):
        tensors = Case(3, 3, 2, 4).tensors()
        tensors[2][1, 1] = outside
        assert encode_linear_triton(*tensors).isnan().all(dim=1).tolist() == [False, True, False]


def autocast_multiplies_in_its_dtype() -> None:
    tensors = Case(70, 3, 2, 24).tensors()
    with torch.autocast("cpu", torch.float16):
        wanted, got = encode_linear_reference(*tensors), encode_linear_triton(*tensors)
    assert got.dtype == wanted.dtype == torch.float16
    assert greatest_gap(wanted, got) <= TOLERANCES[torch.float16]


def the_kernel_learns_what_the_operators_learn() -> None:
    from tests.functions.training.tabular_setup import COLUMNS, FAST, examples
    from toque.functions.training.tabular.fitting import new_trainer, prepare

    prepared, losses = prepare(examples(rows=250), COLUMNS, FAST), []
    for by_kernel in (False, True):
        encoder._by_kernel = lambda *_, chosen=by_kernel: chosen
        epoch = new_trainer(prepared, FAST).run_epoch()
        losses.append([epoch.train_loss, epoch.valid_loss])
    assert torch.allclose(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=0, atol=1e-5), losses


def the_choice_takes_operators_where_a_gradient_of_numbers_is_wanted() -> None:
    numeric, *others = Case(5, 2, 2, 3, dtype=torch.float64).tensors()
    assert torch.autograd.gradcheck(lambda given: encode_linear(given, *others), numeric.requires_grad_())


def main() -> None:
    assert os.environ["TRITON_INTERPRET"] == "1"
    if sys.argv[1:] == ["any"]:
        any_shape_agrees()
        the_kernel_learns_what_the_operators_learn()
    else:
        for case in CASES:
            agrees(case)
        gradients_are_those_of_finite_differences()
        a_frozen_weight_has_no_gradient()
        a_category_outside_the_table_makes_its_row_nan()
        autocast_multiplies_in_its_dtype()
        the_choice_takes_operators_where_a_gradient_of_numbers_is_wanted()
    sys.stdout.write("agree\n")


if __name__ == "__main__":
    main()
