"""Every request to a store is counted by operation and outcome."""

from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from registry import AlreadyExists, open_store
from registry.errors import Damaged


def counted(operation: str, outcome: str) -> float:
    labels = {"operation": operation, "outcome": outcome}
    return REGISTRY.get_sample_value("toque_store_requests_total", labels) or 0.0


def test_requests_count_by_operation_and_outcome(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}")
    asked = [("put", "ok"), ("put", "exists"), ("get", "ok")]
    before = [counted(*each) for each in asked]
    store.create("a", b"1")
    with pytest.raises(AlreadyExists):
        store.create("a", b"2")
    assert store.find("a") == b"1"
    assert store.find("b") is None
    assert [counted(*each) - earlier for each, earlier in zip(asked, before, strict=True)] == [1, 1, 2]


def test_a_refused_read_is_counted() -> None:
    before = REGISTRY.get_sample_value("toque_store_damaged_total")
    assert before is not None
    assert str(Damaged("entry 3")) == "entry 3"
    assert REGISTRY.get_sample_value("toque_store_damaged_total") == before + 1
