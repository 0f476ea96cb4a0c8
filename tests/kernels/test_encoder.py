import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.kernels.encoder_gradients import greatest_gap, results_and_gradients
from toque.kernels.encoder import encode_linear, encode_linear_reference
from toque.kernels.encoder_cases import CASES, TOLERANCES, Case

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def by_hand(case: Case, tensors: tuple[Tensor, ...]) -> Tensor:
    """Code and multiply value by value, in float64."""
    numeric, missing, category, left, inverse_width, table, weight, bias = (each.tolist() for each in tensors)
    rows = []
    for numbers, flags, entries in zip(numeric, missing, category, strict=True):
        codes = [
            min(1.0, max(0.0, (number - left[f][b]) * inverse_width[f][b]))
            for f, number in enumerate(numbers)
            for b in range(case.bins)
        ]
        inputs = [*codes, *numbers, *flags, *(value for entry in entries for value in table[entry])]
        rows.append(
            [
                sum(w * x for w, x in zip(unit, inputs, strict=True)) + b
                for unit, b in zip(weight, bias, strict=True)
            ]
        )
    return torch.tensor(rows, dtype=torch.float64).reshape(case.rows, case.hidden)


@pytest.mark.parametrize("case", [c for c in CASES if c.rows <= 65], ids=str)
def test_results_are_those_of_a_plain_loop(case: Case):
    tensors = case.tensors()
    for encode in (encode_linear, encode_linear_reference):
        assert greatest_gap(by_hand(case, tensors), encode(*tensors).double()) <= TOLERANCES[case.dtype]


def test_a_number_fills_the_bins_below_it_and_a_share_of_its_own():
    left, inverse_width = torch.tensor([[0.0, 1.0, 3.0, 0.0]]), torch.tensor([[1.0, 0.5, 1.0, 0.0]])
    numeric = torch.tensor([[-1.0], [0.25], [2.0], [9.0]])
    none = torch.zeros(4, 1)
    weight = torch.cat([torch.eye(4), torch.zeros(4, 3)], dim=1)
    found = encode_linear(
        numeric, none, none.long(), left, inverse_width, torch.zeros(1, 1), weight, torch.zeros(4)
    )
    assert found.tolist() == [[0, 0, 0, 0], [0.25, 0, 0, 0], [1, 0.5, 0, 0], [1, 1, 1, 0]]


@pytest.mark.parametrize("what", ["cases", pytest.param("any", marks=pytest.mark.proof)])
def test_the_kernels_agree_with_the_operators_under_the_interpreter(what: str):
    """The cases with their gradients; any shape that hypothesis finds, and a training."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.interpreted_encoder", what],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "agree\n"


def test_a_traced_network_keeps_plain_operators():
    class Encoder(nn.Module):
        def __init__(self, *fixed: Tensor) -> None:
            super().__init__()
            for number, each in enumerate(fixed):
                self.register_buffer(f"fixed_{number}", each)

        def forward(self, numeric: Tensor, missing: Tensor, category: Tensor) -> Tensor:
            return encode_linear(numeric, missing, category, *self.buffers())

    tensors = CASES[6].tensors()
    program = torch.export.export(Encoder(*tensors[3:]), tensors[:3])
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.linear.default" in called
    assert all(name.startswith("aten.") for name in called)


@pytest.mark.parametrize(
    ("place", "shape", "message"),
    [
        (1, (7, 2), r"missing is \(7, 2\), want \(7, 3\)"),
        (6, (8, 5), r"weight is \(8, 5\), want \(8, 58\)"),
        (4, (3, 1), r"inverse_width is \(3, 1\), want \(3, 12\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(place: int, shape: tuple[int, ...], message: str):
    from toque.kernels.encoder_triton import encode_linear_triton

    tensors = list(Case(7, 3, 2, 8).tensors())
    tensors[place] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        encode_linear_triton(*tensors)


def test_a_gradient_for_numbers_is_refused_by_the_kernel():
    from toque.kernels.encoder_triton import encode_linear_triton

    numeric, *others = Case(7, 3, 2, 8).tensors()
    with pytest.raises(ValueError, match="use encode_linear_reference"):
        encode_linear_triton(numeric.requires_grad_(), *others)


class AbsentCard:
    """Driver of an H100 that is not there, for which Triton compiles all the same."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 90  # apart from the programs of a card that is there

    def get_current_stream(self, _: int) -> int:
        return 0


def test_the_kernels_compile_for_a_card_within_its_shared_memory(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """All is as in a launch but the launch. A T4 has 64 KiB of shared memory for a program, other cards have more."""
    import triton.language as tl
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from toque.kernels import encoder_triton

    built: dict[str, Any] = {}
    run = JITFunction.run

    def compile_only(self: Any, *given: Any, warmup: bool, **named: Any) -> None:
        built[self.__name__] = run(self, *given, warmup=True, **named)

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(encoder_triton, "_arithmetic", lambda _: ("tf32x3", tl.float32))
    *encoded, table, weight, bias = Case(300, 25, 6, 128).tensors()
    monkeypatch.setattr(driver, "_active", AbsentCard())
    encoder_triton.encode_linear_triton(*encoded, table, weight.requires_grad_(), bias).sum().backward()
    assert built.keys() == {"_encode", "_weigh"}
    for kernel in built.values():
        assert "wgmma" in kernel.asm["ptx"] or "mma.sync" in kernel.asm["ptx"], (
            "products must use tensor cores"
        )
        assert kernel.metadata.shared <= 64 << 10


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("case", [*CASES, Case(200, 3, 2, 24, dtype=torch.bfloat16)], ids=str)
def test_the_kernels_agree_with_the_operators_on_a_card(case: Case):
    wanted = results_and_gradients(encode_linear_reference, case, device="cuda")
    got, again = (results_and_gradients(encode_linear, case, device="cuda") for _ in range(2))
    for name, value in wanted.items():
        assert greatest_gap(value, got[name]) <= TOLERANCES[case.dtype], name
        assert torch.equal(got[name], again[name]), f"{name} differs from run to run"
