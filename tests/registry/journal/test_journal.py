import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from toque.registry import (
    AlreadyExists,
    Conflict,
    Damaged,
    Entry,
    Fold,
    InvalidInput,
    Journal,
    NotFound,
    ObjectStore,
    Unavailable,
)
from toque.registry.journal.entry import NO_DIGEST


def journal(store: ObjectStore, actor: str = "ada") -> Journal:
    return Journal(store, "models/m", actor=actor)


def test_entries_are_numbered_chained_and_carry_actor_and_time(store: ObjectStore):
    at = datetime(2013, 7, 1, 12, tzinfo=timezone(timedelta(hours=-4)))
    writer = Journal(store, "j", actor="ada", clock=lambda: at)
    first, second = writer.append({"n": 1}, at=0), writer.append({"n": 2}, at=1)
    assert (first.number, first.previous) == (0, NO_DIGEST)
    assert second.previous == first.digest
    read = list(journal_at(store, "j").entries())
    assert [entry.body for entry in read] == [{"n": 1}, {"n": 2}]
    assert read[0].actor == "ada"
    assert read[0].at == datetime(2013, 7, 1, 16, tzinfo=UTC)
    assert read[0].at.tzinfo == UTC


def journal_at(store: ObjectStore, path: str) -> Journal:
    return Journal(store, path, actor="reader")


def test_the_second_writer_at_a_number_gets_the_first_ones_entry(store: ObjectStore):
    mine = journal(store).append({"n": 1}, at=0)
    with pytest.raises(Conflict) as caught:
        journal(store, "bob").append({"n": 1}, at=0)
    assert caught.value.number == 0
    assert caught.value.entry == mine
    assert "ada" in str(caught.value)


def test_a_gap_is_refused(store: ObjectStore):
    journal(store).append({}, at=0)
    with pytest.raises(InvalidInput, match="gap"):
        journal(store).append({}, at=2)
    with pytest.raises(InvalidInput, match="negative"):
        journal(store).append({}, at=-1)


@pytest.mark.parametrize("body", [{"x": float("nan")}, {"x": {1, 2}}, {"x": float("inf")}, {"x": "\ud800"}])
def test_a_body_that_is_not_finite_json_is_refused(folder_store: ObjectStore, body: dict):
    with pytest.raises(InvalidInput, match="JSON"):
        journal(folder_store).append(body, at=0)
    assert journal(folder_store).find(0) is None


def test_the_writer_gets_what_a_reader_will_see(folder_store: ObjectStore):
    entry = journal(folder_store).append({"tuple": (1, 2), "keys": {1: "a"}}, at=0)
    assert entry.body == {"tuple": [1, 2], "keys": {"1": "a"}}
    assert journal(folder_store).entry(0) == entry


def test_an_absent_entry_is_not_found(folder_store: ObjectStore):
    assert journal(folder_store).find(0) is None
    with pytest.raises(NotFound):
        journal(folder_store).entry(0)


def test_an_empty_actor_is_refused(folder_store: ObjectStore):
    with pytest.raises(InvalidInput, match="actor"):
        Journal(folder_store, "j", actor=" ")


class LosesAnswers:
    """A store that creates objects but loses the answer: AlreadyExists after a retry, or Unavailable."""

    def __init__(self, inner: ObjectStore, error: type[Exception], *, stores: bool = True) -> None:
        self.inner, self.error, self.stores = inner, error, stores

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def create(self, key: str, data: bytes) -> None:
        if self.stores:
            self.inner.create(key, data)
        raise self.error("lost")


@pytest.mark.parametrize("error", [AlreadyExists, Unavailable])
def test_a_retry_recognises_its_own_entry(folder_store: ObjectStore, error: type[Exception]):
    entry = journal(LosesAnswers(folder_store, error)).append({"n": 1}, at=0)
    assert journal(folder_store).entry(0) == entry


def test_a_write_that_did_not_happen_is_unavailable(folder_store: ObjectStore):
    with pytest.raises(Unavailable, match="try again"):
        journal(LosesAnswers(folder_store, Unavailable, stores=False)).append({"n": 1}, at=0)


@pytest.mark.parametrize("field", ["body", "actor", "at", "txn", "previous", "number", "digest"])
@pytest.mark.parametrize("reseal", [False, True])
def test_verify_names_the_first_changed_entry(folder_store: ObjectStore, field: str, reseal: bool):  # noqa: FBT001
    writer = journal(folder_store)
    for number in range(5):
        writer.append({"n": number}, at=number)
    assert writer.verify() == 5
    stored = json.loads(folder_store.get(writer.key(2)))
    changed = {
        "body": {"n": 7},
        "actor": "eve",
        "at": "2013-01-01T00:00:00.000000+00:00",
        "txn": "0" * 32,
        "previous": "0" * 64,
        "number": 3,
        "digest": "f" * 64,
    }[field]
    stored[field] = changed
    if reseal and field != "digest":  # a forger who makes the entry itself consistent breaks the chain
        fields = {**stored, "at": datetime.fromisoformat(stored["at"])}
        stored = Entry(**fields).with_digest().to_json()
    folder_store.put(writer.key(2), json.dumps(stored).encode())
    with pytest.raises(Damaged, match=r"entry [23]"):
        journal(folder_store).verify()


def test_a_flipped_bit_anywhere_in_an_entry_is_found(folder_store: ObjectStore):
    writer = journal(folder_store)
    for number in range(3):
        writer.append({"n": number}, at=number)
    good = folder_store.get(writer.key(1))
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1
        folder_store.put(writer.key(1), bytes(bad))
        with pytest.raises(Damaged, match="entry 1"):
            journal(folder_store).verify()


def test_a_missing_entry_is_found(folder_store: ObjectStore):
    writer = journal(folder_store)
    for number in range(4):
        writer.append({"n": number}, at=number)
    folder_store.delete(writer.key(2))
    with pytest.raises(Damaged, match="entry 2 is missing"):
        journal(folder_store).verify()
    folder_store.delete(writer.key(0))
    with pytest.raises(Damaged, match="entry 0 is missing"):
        journal(folder_store).verify()


@pytest.mark.parametrize("count", [0, 1, 64, 65, 200])
@pytest.mark.parametrize("carry", [False, True])
def test_entries_are_read_backwards_by_few_reads_where_they_are_carried(
    folder_store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    carry: bool,  # noqa: FBT001
):
    fold = Fold(
        Journal(folder_store, "j", actor="ada"), 0, lambda n, _: n + 1, encode=int, decode=int, carry=carry
    )
    for number in range(count):
        fold.transact(lambda _, n=number: {"n": n})
    reads: list[str] = []
    find = type(folder_store).find
    monkeypatch.setattr(
        type(folder_store), "find", lambda store, key: (reads.append(key), find(store, key))[1]
    )
    found = [entry.body["n"] for entry in Journal(folder_store, "j", actor="ada").newest_first()]
    assert found == list(range(count))[::-1]
    assert len(reads) <= (count // 64 + 1 if carry else count)


@pytest.mark.parametrize("carry", [False, True])
def test_a_gap_is_found_on_the_way_back(folder_store: ObjectStore, carry: bool):  # noqa: FBT001
    fold = Fold(
        Journal(folder_store, "j", actor="ada"), 0, lambda n, _: n + 1, encode=int, decode=int, carry=carry
    )
    for _ in range(70):
        fold.transact(lambda _: {})
    read = [entry.number for entry in fold.journal.newest_first()]
    assert read == list(range(70))[::-1]
    folder_store.delete(fold.journal.key(63))
    with pytest.raises(Damaged, match="entry 63 is missing"):
        list(Journal(folder_store, "j", actor="ada").newest_first())
