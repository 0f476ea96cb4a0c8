"""Live figures of a model's arms, and the preview of a split, by HTTP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.ray_apps.gateway.conftest import Gateway
from toque.functions.live_counts import (
    BINS,
    WINDOW_S,
    ArmTally,
    Failures,
    SplitArm,
    WindowCounts,
    bin_of,
    figures,
    window_at,
)


def counted(requests: int, *, entry: int = 1, errors: tuple[int, ...] = (), ms: float = 4.0) -> WindowCounts:
    latency = np.zeros(BINS, dtype=np.int64)
    latency[bin_of(ms)] = requests
    return WindowCounts(
        {SplitArm(entry, 2, "canary", 0.1): ArmTally(requests, Failures.of(errors), latency=latency)}
    )


def test_the_last_minute_is_the_running_one_and_the_rest_of_the_one_before() -> None:
    now = 1_000 * WINDOW_S + 15.0  # a quarter into a minute
    counts = {999: counted(600, errors=(1,)), 1_000: counted(150, errors=(1, 2), ms=40.0), 998: counted(60)}
    found = figures(counts, now)
    (canary,) = found.arms
    assert (canary.arm, canary.version, canary.requests) == ("canary", 2, 600)  # 150 + 3/4 of 600
    assert canary.requests_per_s == 10.0
    assert canary.errors == 3  # 2 + 3/4 of 1: requests that failed, whoever made them
    assert canary.p50_ms == pytest.approx(4.0, rel=0.1)
    assert canary.p99_ms == pytest.approx(40.0, rel=0.1)
    assert [each.requests for each in found.history] == [{"canary": 60}, {"canary": 600}, {"canary": 150}]


def test_splits_of_one_arm_are_pooled_and_an_arm_without_requests_has_no_latency() -> None:
    counts = {window_at(0.0): counted(6, entry=1) + counted(6, entry=2)}
    assert figures(counts, 0.0).arms[0].requests == 12
    assert figures({0: counted(0)}, 0.0).arms[0].p99_ms is None


async def test_without_redis_it_says_so(gateway: Gateway) -> None:
    answer = await gateway.client.get("/models/any/live", headers=gateway.headers("viewer"))
    assert answer.status_code == 503
    assert "TOQUE_REDIS_URL" in answer.json()["detail"]


async def test_a_preview_moves_nobody(gateway: Gateway, tmp_path: Path) -> None:
    registry = gateway.context.registry()
    registry.create_model("m")
    for number in (1, 2):
        (tmp_path / "w.npy").write_bytes(bytes([number]))
        registry.create_version("m", tmp_path / "w.npy")
    registry.promote("m", 1)
    body = {"arms": {"canary": {"version": 2, "share": 0.2}}}
    answer = await gateway.client.post(
        "/models/m/traffic/preview", json=body, headers=gateway.headers("viewer")
    )
    assert answer.json()["moves"] == [
        {"source": "champion", "source_version": 1, "target": "canary", "target_version": 2, "share": 0.2}
    ]
    assert len(registry.traffic("m").arms) == 1
