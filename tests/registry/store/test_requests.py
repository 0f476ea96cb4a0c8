import threading
import time
from pathlib import Path

import pytest

from toque.registry import ObjectStore
from toque.registry.store import clock_skew_s, folder, requests, s3
from toque.registry.store.requests import Charged, Operation, RequestCounts


class OfThisThread(RequestCounts):
    """Counts of what the thread that made it asks a store; threads that earlier tests left go on asking theirs."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def add(self, operation: Operation, key: str, requests: int = 1) -> None:
        if threading.get_ident() == self._thread:
            super().add(operation, key, requests)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> RequestCounts:
    found = OfThisThread()
    monkeypatch.setattr(requests, "REQUESTS", found)
    monkeypatch.setattr(folder, "REQUESTS", found)
    return found


def test_each_verb_counts_what_s3_charges(store: ObjectStore, counts: RequestCounts, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 100)
    store.create("a/1", b"")
    store.put("a/1", b"")
    store.upload("a/2", file)
    store.find("a/1")
    store.find_aged("a/1")
    store.find_modified_at("a/1")
    store.download("a/1", tmp_path / "copy")
    list(store.list("a/"))
    store.delete("a/1")
    assert counts.charged() == Charged(reads=4, writes=4)
    assert counts.by_part() == {
        ("put", "a"): 3,
        ("get", "a"): 3,
        ("head", "a"): 1,
        ("list", "a"): 1,
        ("delete", "a"): 1,
    }


def test_an_upload_in_parts_counts_its_parts(
    s3_endpoint: str, counts: RequestCounts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_PART_BYTES", 5 << 20)
    file = tmp_path / "large"
    file.write_bytes(b"x" * (11 << 20))
    store = s3.S3Store("toque", "parts", endpoint=s3_endpoint)
    sent: list[str] = []
    store._client.meta.events.register("before-send.s3.*", lambda event_name, **_: sent.append(event_name))
    store.upload("large", file)
    assert counts.charged() == Charged(reads=0, writes=len(sent))


def test_a_forked_process_starts_from_zero() -> None:
    counts = RequestCounts()
    counts.add("get", "a/b")
    counts.forget()
    assert counts.charged() == Charged(0, 0)


def test_an_object_s_age_is_of_the_store_s_clock(store: ObjectStore) -> None:
    assert store.find_aged("a") is None
    store.put("a", b"old")
    first = store.find_aged("a")
    assert first is not None
    assert (first.data, first.age_s <= 30) == (b"old", True)
    deadline = time.monotonic() + 60
    while (found := store.find_aged("a")) is None or found.age_s < 1:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    store.put("a", b"new")
    again = store.find_aged("a")
    assert again is not None
    assert (again.data, again.age_s < found.age_s + 30) == (b"new", True)


def test_the_skew_of_a_clock_is_its_distance_from_the_store_s(store: ObjectStore) -> None:
    assert abs(clock_skew_s(store)) < 2
    assert abs(clock_skew_s(store, clock=lambda: time.time() + 300) - 300) < 2
    assert abs(clock_skew_s(store, clock=lambda: time.time() - 300) + 300) < 2
