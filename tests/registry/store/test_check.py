"""Stores that keep the platform's promises pass; each broken promise is named with its remedy."""

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.registry import s3_servers
from toque.registry import ObjectStore, open_store
from toque.registry.store import UnfitStore, check_store


def test_a_store_that_keeps_its_promises_passes_and_is_left_empty(store: ObjectStore) -> None:
    assert abs(check_store(store)) < 5
    assert list(store.list("")) == []


@pytest.fixture(scope="module")
def careless_endpoint(aws_environment: None) -> Iterator[str]:
    """An S3 server that takes no notice of If-None-Match."""
    with s3_servers.moto("--ignore-conditions") as endpoint:
        s3_servers.create_bucket(endpoint, "toque")
        yield endpoint


def test_a_server_that_ignores_conditions_is_refused(careless_endpoint: str) -> None:
    store = open_store(f"s3://toque/careless?endpoint={careless_endpoint}")
    with pytest.raises(
        UnfitStore, match=r"created a second time: the server ignores If-None-Match.*; use a server"
    ):
        check_store(store)
    assert list(store.list("")) == []


class Altered:
    """A store with some verbs replaced."""

    def __init__(self, store: ObjectStore, **verbs: Any) -> None:
        self._store = store
        vars(self).update({name: verb.__get__(store) for name, verb in verbs.items()})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_a_server_that_tests_before_it_writes_is_refused(folder_store: ObjectStore) -> None:
    seen = threading.Lock()

    def create(store: ObjectStore, key: str, data: bytes) -> None:
        if "race" not in key:
            store.create(key, data)
        elif store.find(key) is None:
            with seen:
                time.sleep(0.01)
            store.put(key, data)

    with pytest.raises(
        UnfitStore, match=r"of 8 simultaneous creates .* tests If-None-Match before it writes"
    ):
        check_store(Altered(folder_store, create=create))


def test_reads_that_are_older_than_writes_are_refused(folder_store: ObjectStore) -> None:
    def put(store: ObjectStore, key: str, data: bytes) -> None:
        if store.find(key) is None:
            store.put(key, data)

    with pytest.raises(UnfitStore, match=r"written as b'1' and read as b'0': .* turn caches"):
        check_store(Altered(folder_store, put=put))


def test_deletes_that_do_nothing_and_lists_out_of_order_are_refused(folder_store: ObjectStore) -> None:
    with pytest.raises(UnfitStore, match="was deleted and is still there; grant deletion"):
        check_store(Altered(folder_store, delete=lambda _store, _key: None))

    def unordered(store: ObjectStore, prefix: str, *, after: str = "") -> Any:
        return reversed(list(store.list(prefix, after=after)))

    with pytest.raises(UnfitStore, match="lists are late, out of order or ignore StartAfter"):
        check_store(Altered(folder_store, list=unordered))


@pytest.mark.parametrize(("minutes", "said"), [(5, "300 s behind"), (-5, "300 s ahead of")])
def test_a_clock_far_from_ours_is_refused(folder_store: ObjectStore, minutes: int, said: str) -> None:
    def clock() -> datetime:
        return datetime.now(UTC) + timedelta(minutes=minutes)

    with pytest.raises(UnfitStore, match=rf"clock is (29\d|30\d) s {said.split()[2]} .* set both by NTP"):
        check_store(folder_store, clock=clock)
