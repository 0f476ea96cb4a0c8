import time
from collections.abc import Callable
from pathlib import Path

import pytest

from registry import ObjectStore
from registry.store import clock_skew_s, s3
from registry.store.requests import REQUESTS, Charged, RequestCounts


def charged_by(work: Callable[[], object]) -> tuple[Charged, dict[tuple[str, str], int]]:
    before, parts = REQUESTS.charged(), REQUESTS.by_part()
    work()
    after = REQUESTS.by_part()
    changed = {each: number - parts.get(each, 0) for each, number in after.items()}
    return REQUESTS.charged().since(before), {each: number for each, number in changed.items() if number}


def test_each_verb_counts_what_s3_charges(store: ObjectStore, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 100)

    def work() -> None:
        store.create("a/1", b"")
        store.put("a/1", b"")
        store.upload("a/2", file)
        store.find("a/1")
        store.find_aged("a/1")
        store.find_modified_at("a/1")
        store.download("a/1", tmp_path / "copy")
        list(store.list("a/"))
        store.delete("a/1")

    charged, parts = charged_by(work)
    assert charged == Charged(reads=4, writes=4)
    assert parts == {("put", "a"): 3, ("get", "a"): 3, ("head", "a"): 1, ("list", "a"): 1, ("delete", "a"): 1}


def test_an_upload_in_parts_counts_its_parts(
    s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_PART_BYTES", 5 << 20)
    file = tmp_path / "large"
    file.write_bytes(b"x" * (11 << 20))
    store = s3.S3Store("toque", "parts", endpoint=s3_endpoint)
    sent: list[str] = []
    store._client.meta.events.register("before-send.s3.*", lambda event_name, **_: sent.append(event_name))
    charged, _ = charged_by(lambda: store.upload("large", file))
    assert charged == Charged(reads=0, writes=len(sent))


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
    deadline = time.monotonic() + 30
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
