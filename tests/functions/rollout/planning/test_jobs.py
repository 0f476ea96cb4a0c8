"""A plan from the registry's version and the log alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.functions.rollout.conftest import RolloutPlatform
from toque.functions.model_formats.program import export_program, save_program
from toque.functions.rollout import RolloutError, RolloutPolicy, plan_rollout, rollout_budget, start_rollout
from toque.functions.runtime import Context, use_context
from toque.registry import NotFound, Registry, Signature, TensorSpec

MODEL = "late"


class Sharper(torch.nn.Module):
    def forward(self, numeric: torch.Tensor, categorical: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(1.35 * numeric[:, :1]) + 0.0 * categorical[:, :1].float()


@pytest.fixture
def registry(platform: RolloutPlatform, tmp_path: Path) -> Registry:
    """Two versions that answer as the simulated challenger does; none is champion yet."""
    reg = Registry(platform.store, actor="trainer", clock=platform.clock)
    reg.create_model(MODEL)
    example = {"numeric": torch.rand(4, 1), "categorical": torch.ones(4, 1, dtype=torch.int64)}
    (tmp_path / "model").mkdir()
    save_program(export_program(Sharper(), example), tmp_path / "model" / "model.pt2")
    signature = Signature(
        inputs=[
            TensorSpec(name="numeric", datatype="FP32", shape=[-1, 1], columns=["signal"]),
            TensorSpec(name="categorical", datatype="BYTES", shape=[-1, 1], columns=["origin"]),
        ],
        outputs=[TensorSpec(name="probability", datatype="FP32", shape=[-1, 1])],
    )
    for _ in range(2):
        reg.create_version(MODEL, tmp_path / "model", signature=signature)
    return reg


def test_a_plan_replays_the_challenger_on_the_logged_vectors(
    platform: RolloutPlatform, registry: Registry
) -> None:
    policy = RolloutPolicy(shadow_min_labels=200, wrong_promotions_a_year=0.08)
    with use_context(Context(platform.store, platform.store.url, clock=platform.clock, actor="ada")):
        with pytest.raises(NotFound, match="has no champion"):
            plan_rollout(MODEL, 2, policy)
        registry.set_alias(MODEL, "champion", 1)
        with pytest.raises(RolloutError, match="at least two past cohorts, got 0"):
            plan_rollout(MODEL, 2, policy)
        for _ in range(6):
            platform.serve_a_day(requests=200)
        found = plan_rollout(MODEL, 2, policy)
        assert (found.past_cohorts, found.past_labels, found.alpha) == (5, 1_000, 0.02)
        assert found.replayed is not None
        assert found.replayed > 3 * (found.replayed_error or 0) > 0  # it is better, and that is seen
        assert "take the plan as a guess" in found.summary[-1]
        assert plan_rollout(MODEL, 2, policy, effect=0.2).chance_promoted == 1.0
        assert start_rollout(MODEL, 2, policy).policy.alpha == 0.02
        assert rollout_budget(MODEL, policy).left == pytest.approx(0.06)
