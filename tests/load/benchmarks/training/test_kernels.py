"""The benchmark of kernels counts bytes right, and says plainly what it cannot measure."""

import pytest
import torch

from toque.kernels.encoder import encode_linear, encode_linear_reference
from toque.kernels.encoder_cases import Case
from toque.load.benchmarks.harness import NotPossible, Timing
from toque.load.benchmarks.training import kernels


def test_the_bytes_of_a_step_are_those_of_rows_result_and_weights():
    case = Case(10, 2, 1, 4, bins=3, width=2, entries=5)
    rows = 10 * (2 * 2 * 4 + 8 + 4 * 4)  # numbers and flags, a category, the result
    weights = (4 * (2 * 5 + 2) + 4 + 5 * 2) * 4  # the layer with its bias, the table
    assert kernels.least_bytes(case, learns=False) == rows + weights
    assert kernels.least_bytes(case, learns=True) == 2 * (rows + weights) + weights


@pytest.mark.skipif(torch.cuda.is_available(), reason="refused only without a CUDA device")
def test_a_card_is_asked_for_plainly():
    with pytest.raises(NotPossible, match="finds no CUDA device here"):
        kernels.run(cases=("card",))


@pytest.mark.parametrize("learns", [False, True])
def test_every_way_is_told_with_its_shares(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, learns: bool
):
    calls = []

    def once(step):
        calls.append(step())
        return Timing(1e-3, 1e-3, 1e-3)

    monkeypatch.setattr(kernels, "_on_card", once)
    case, ways = Case(65, 3, 2, 8), {"eager": encode_linear_reference, "Triton": encode_linear}
    bytes_s = kernels.least_bytes(case, learns=learns) / 0.5e-3
    kernels.bench_encoder(case, ways, bytes_s, learns=learns, device="cpu")
    first, second = capsys.readouterr().out.splitlines()
    assert "50.0% of bandwidth, 100.0% of its bound" in first
    assert "50.0% of bandwidth, 100.0% of its bound" in second
    assert len(calls) == 3
