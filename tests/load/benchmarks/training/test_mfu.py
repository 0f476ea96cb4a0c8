"""Both loops of the benchmark train the same, and MFU is counted as it is elsewhere."""

import pytest
import torch

from toque.functions.training.planning import CARDS, Setup
from toque.load.benchmarks.training import mfu
from toque.load.benchmarks.training.mfu import BILLION, TINY, Job, card_named, plain_loop, platform_loop


def test_both_loops_take_the_same_steps():
    job = Job(TINY, Setup(1, 3, 16, "replicate", half=False), steps=7, device="cpu", compiled=False)
    ours, plain = platform_loop(job), plain_loop(job)
    assert ours.loss == pytest.approx(plain.loss, abs=1e-5)
    assert ours.step_s > 0
    assert plain.step_s > 0


def test_a_share_of_the_peak_is_that_of_a_hand_calculation():
    """Llama 3.2 1B: blocks of 60.8 million weights, the tied head of 262.7 million."""
    job = Job(BILLION, Setup(1, 4, 2_048, "replicate"), steps=9, device="cuda", compiled=True)
    weights = 16 * (2_048 * (2 * 2_048 + 2 * 512) + 3 * 2_048 * 8_192) + 2_048 * 128_256
    token = 6 * weights + 6 * 16 * 32 * 64 * 2_048
    assert BILLION.parameters == weights
    assert mfu.mfu(job, 50_000.0, CARDS["h100"]) == pytest.approx(50_000 * token / 989e12)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L4", "l4"),
        ("Tesla T4", "t4"),
    ],
)
def test_cards_are_known_by_their_drivers_names(name: str, kind: str):
    assert card_named(name) is CARDS[kind]


def test_an_unknown_card_has_no_peak():
    assert card_named("NVIDIA GeForce RTX 4090") is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="measured where there is a CUDA device")
def test_without_a_card_nothing_is_called_measured(capsys: pytest.CaptureFixture[str]):
    assert mfu.run(steps=6) is None
    assert "MFU: not measured, there is no CUDA device here" in capsys.readouterr().out
