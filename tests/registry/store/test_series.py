"""Every request to a store is counted by operation and outcome."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Counter

from toque.registry import AlreadyExists, open_store
from toque.registry.errors import Damaged
from toque.registry.store import requests


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Requests of this thread; threads that earlier tests left go on asking their stores."""
    own = Counter("requests", "Of this thread.", ("operation", "outcome"), registry=CollectorRegistry())
    everybody, thread = requests.OUTCOMES, threading.get_ident()

    def labels(*values: str) -> Any:
        return (own if threading.get_ident() == thread else everybody).labels(*values)

    monkeypatch.setattr(requests, "OUTCOMES", SimpleNamespace(labels=labels))
    return own


def test_requests_count_by_operation_and_outcome(tmp_path: Path, counted: Counter) -> None:
    store = open_store(f"file://{tmp_path}")
    store.create("a", b"1")
    with pytest.raises(AlreadyExists):
        store.create("a", b"2")
    assert store.find("a") == b"1"
    assert store.find("b") is None
    (family,) = counted.collect()
    assert {
        (each.labels["operation"], each.labels["outcome"]): each.value
        for each in family.samples
        if each.name.endswith("_total")
    } == {("put", "ok"): 1, ("put", "exists"): 1, ("get", "ok"): 2}


def test_a_refused_read_is_counted() -> None:
    before = REGISTRY.get_sample_value("toque_store_damaged_total")
    assert before is not None
    assert str(Damaged("entry 3")) == "entry 3"
    assert REGISTRY.get_sample_value("toque_store_damaged_total") == before + 1
