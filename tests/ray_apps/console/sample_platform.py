"""A store with models, versions, gates and reviews, made quickly, for tests and pictures of the console."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.functions.rollout.conftest import RolloutPlatform, TrafficRegistry
from toque.functions.live_counts import BINS, WINDOW_S, ArmTally, Failures, SplitArm, bin_of, window_at
from toque.functions.live_counts.counts import counts_key, encode
from toque.functions.model_formats.load import PROGRAM_FILE
from toque.functions.model_formats.program import export_program, save_program
from toque.functions.rollout import RolloutPolicy
from toque.registry import (
    Arm,
    Lineage,
    ModelPolicy,
    ObjectStore,
    Registry,
    Signature,
    TableSnapshot,
    TensorSpec,
    Traffic,
)

NOW = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
MODEL = "late-flights"
_SIGNATURE = Signature(
    inputs=[TensorSpec(name="input", datatype="FP32", shape=[-1, 3], columns=["distance", "hour", "wind"])],
    outputs=[TensorSpec(name="probability", datatype="FP32", shape=[-1, 1])],
    example={"input": [[800.0, 9.0, 5.0]]},
)


class _Linear(torch.nn.Module):
    """.35 + .0002 distance + .01 hour + .0088 wind."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  # name of the tensor
        return 0.35 + input @ torch.tensor([[0.0002], [0.01], [0.0088]])


class _Clock:
    """A clock that goes on by some hours with each look at it, up to the time that tests stand at."""

    def __init__(self) -> None:
        self.at = NOW - timedelta(days=30)

    def __call__(self) -> datetime:
        self.at = min(NOW, self.at + timedelta(minutes=97))
        return self.at


def fill(store: ObjectStore, folder: Path) -> None:
    """Make a model whose third version is live with a canary of the fourth, and whose fifth waits for an approver."""
    clock = _Clock()
    trainer = Registry(store, actor="retraining", clock=clock)
    ada = Registry(store, actor="ada", clock=clock)
    policy = ModelPolicy(guarded=frozenset({"champion"}), gates=("offline",), approvals=1)
    trainer.create_model(
        MODEL,
        description="Will a flight arrive more than 15 minutes late?",
        tags={"team": "operations", "segment": "EWR"},
        policy=policy,
    )
    for number in range(1, 6):
        _version(trainer, folder, number)
        passed = number != 2
        trainer.record_gate(MODEL, number, "offline", passed, _gate_details(number, passed=passed))
    ada.approve(MODEL, 1, comment="first one; better than the constant by far")
    ada.promote(MODEL, 1, reason="go live")
    ada.reject(MODEL, 2, comment="worse on short flights")
    ada.approve(MODEL, 3, comment="December looks right")
    ada.promote(MODEL, 3, reason="better in every month")
    ada.approve(MODEL, 4)
    ada.set_traffic(MODEL, {"canary": (4, 0.1)}, shadows=[5], reason="ten percent first")
    other = Registry(store, actor="grace", clock=clock)
    other.create_model("churn", description="Does a customer leave within 30 days?")
    other.create_model("price-of-fuel", description="Next week's price, from a model made elsewhere")
    _version(other, folder, 1, model="price-of-fuel")
    other.promote("price-of-fuel", 1, reason="imported")


def begin_rollout(store: ObjectStore, days: int = 6) -> None:
    """Roll version 4 out against version 3 for some days of a simulated log, which leaves it as a canary."""
    registry = TrafficRegistry()
    registry.now = Traffic(arms=(Arm(name="champion", version=3, share=1.0),), entry=10)
    registry.statuses = {3: "READY", 4: "READY"}
    served = RolloutPlatform(
        store, model=MODEL, registry=registry, quality={3: 0.5, 4: 0.9}, now=NOW - timedelta(days=days)
    )
    policy = RolloutPolicy(shadow_min_labels=200, season=timedelta(0))  # bounds before the first week is over
    served.rollouts().start(4, policy, reason="retrained on February")
    for _ in range(days):
        served.serve_a_day()
        served.rollouts().tick()


def answer_requests(client: Any, now: float, *, model: str = MODEL, minutes: int = 40) -> None:
    """Count requests of the last minutes as predictors do: 18 a second, a tenth of them by the canary. client: of Redis."""
    rng = np.random.default_rng(7)
    for window in range(window_at(now) - minutes, window_at(now) + 1):
        part = (now % WINDOW_S) / WINDOW_S if window == window_at(now) else 1.0
        asked = rng.poisson(part * 60 * (16 + 3 * np.sin(window / 6)))
        arms = {
            SplitArm(entry=20, version=version, arm=arm, share=share): ArmTally(
                requests=int(share * asked),
                errors=Failures.of(rng.integers(0, 1 << 62, size=rng.poisson(0.3 * share)).tolist()),
                latency=_latencies(rng, int(share * asked), median),
            )
            for arm, version, share, median in (("champion", 3, 0.9, 4.1), ("canary", 4, 0.1, 4.6))
        }
        client.hset(counts_key("default", model, window), "a-replica", encode(arms))


def _latencies(rng: np.random.Generator, count: int, median_ms: float) -> np.ndarray:
    bins = [bin_of(each) for each in rng.lognormal(np.log(median_ms), 0.35, size=count)]
    return np.bincount(bins, minlength=BINS).astype(np.int64)


def _version(registry: Registry, folder: Path, number: int, *, model: str = MODEL) -> None:
    path = folder / f"{model}-{number}"
    path.mkdir(parents=True, exist_ok=True)
    if model == MODEL:
        np.save(path / "weights.npy", np.random.default_rng(number).normal(size=(64, 8)))
        (path / "columns.json").write_text('["distance", "hour", "wind"]')
    else:  # a model that can be loaded, and its answers explained
        example = {"input": torch.tensor([[800.0, 9.0, 5.0], [1400.0, 17.0, 12.5]])}
        save_program(export_program(_Linear(), example), path / PROGRAM_FILE)
    registry.create_version(
        model,
        path,
        signature=_SIGNATURE,
        metrics={"log_loss": 0.52 - 0.012 * number, "auc": 0.71 + 0.011 * number, "ece": 0.031 / number},
        tags={"trainer": "tabular", "window": f"{number + 2} months", "feature_service": "late_flights"},
        lineage=Lineage(
            run=f"01HX{number:04d}RUN",
            datasets=[TableSnapshot(name="training/late-flights", version=10 + number)],
            features={"flight_weather": "a1b2c3d4e5f60718" * 4, "carrier_history": f"{number:016x}" * 4},
            code="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            parent=number - 1 or None,
        ),
        description="" if number < 5 else "Trained on seven months, with the wind at the destination.",
    )


def _gate_details(number: int, *, passed: bool) -> dict[str, object]:
    loss = 0.51 - 0.011 * number
    return {
        "rows": 18_432,
        "dataset": f"training/late-flights-holdout@{number}",
        "champion": max(1, number - 1),
        "checks": [
            _check("log loss over constant", 0.913, 0.99, "at most", ok=True),
            _check("log loss over logistic", 0.987 if passed else 1.034, 1.01, "at most", ok=passed),
            _check("rows", 18_432, 200, "at least", ok=True),
            _check("calibration error", 0.0214, 0.1, "at most", ok=True, note="95 % interval 0.017 to 0.026"),
        ],
        "metrics": {"log_loss": loss, "auc": 0.74, "brier": 0.162},
        "ratios": {"constant": 0.913, "logistic": 0.987},
        "intervals": {"log_loss": {"low": loss - 0.006, "high": loss + 0.006}},
    }


def _check(
    name: str, value: float, limit: float, rule: str, *, ok: bool, note: str = ""
) -> dict[str, object]:
    return {"name": name, "value": value, "limit": limit, "rule": rule, "passed": ok, "note": note}
