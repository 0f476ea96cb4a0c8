"""What consumers count for Prometheus: everything once, and that a source cannot be followed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from tests.ray_apps.streams.clicking import clicks, spent
from tests.waiting import until
from toque.featurestore import FeatureStore, InvalidDefinition
from toque.featurestore.streams.consumer import ConsumerCounts
from toque.functions.runtime.context import context_of
from toque.ray_apps.streams.follower import ConsumerSeries, Follower
from toque.registry import open_store


def counted(name: str, source: str) -> float:
    labels = {"workspace": "default", "source": source}
    return REGISTRY.get_sample_value(f"toque_stream_{name}", labels) or 0.0


def test_what_is_counted_from_one_look_to_the_next_is_shown_once() -> None:
    counts = ConsumerCounts(rows=3)
    series = ConsumerSeries("default", "looked-at")
    series.show(counts)
    counts.rows += 5  # as a consumer counts, in the object that was shown
    counts.failures += 2
    series.show(counts)
    counts.rows += 1
    series.show(replace(counts, held=4))  # as it does once it has measured
    series.show(counts)
    shown = [counted(name, "looked-at") for name in ("rows_total", "failures_total", "held_events")]
    assert shown == [9, 2, 0]


def test_a_source_that_cannot_be_followed_is_counted(tmp_path: Path) -> None:
    used = context_of({"TOQUE_STORE": f"file://{tmp_path}"})
    used.features().apply([spent])
    before = counted("failures_total", "clicks")
    follower = Follower(used, "clicks")  # the secret with the address of its log is missing
    until(lambda: not follower.alive)
    assert counted("failures_total", "clicks") == before + 1


def test_partitions_that_nobody_can_tell_apart_are_refused_when_they_are_applied(tmp_path: Path) -> None:
    features = FeatureStore(open_store(f"file://{tmp_path}"))
    with pytest.raises(InvalidDefinition, match=r"'clicks' has 4 partitions; .*partitioned_by"):
        features.apply([replace(clicks, partitioned_by=[])])
    assert features.list_stream_sources() == []
