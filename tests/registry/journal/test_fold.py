from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.context import ForkServerContext
from typing import Any

import pytest

from toque.registry import Conflict, Damaged, Fold, Journal, ObjectStore, open_store
from toque.registry.journal import Entry


def add(total: int, entry: Entry) -> int:
    return total + entry.body["n"]


def sum_of(store: ObjectStore, *, carry: bool = False, schema: str = "1") -> Fold[int]:
    journal = Journal(store, "sum", actor="ada")
    return Fold(journal, 0, add, encode=lambda s: s, decode=lambda s: s, carry=carry, schema=schema)


class Counting:
    """Counts the requests made of a store."""

    def __init__(self, inner: ObjectStore) -> None:
        self.inner, self.calls = inner, Counter[str]()

    def __getattr__(self, name: str) -> Any:
        if name not in {"audit_keys", "announce"}:  # which are no requests
            self.calls[name] += 1
        return getattr(self.inner, name)


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 130])
def test_a_cold_reader_reaches_the_same_state(folder_store: ObjectStore, count: int, carry: bool):  # noqa: FBT001
    writer = sum_of(folder_store, carry=carry)
    for number in range(count):
        writer.transact(lambda _, n=number: {"n": n})
    reader = sum_of(folder_store, carry=carry)
    assert reader.refresh() == writer.refresh() == sum(range(count))
    assert reader.next == count
    reader.transact(lambda _: {"n": 1000})
    assert writer.refresh() == sum(range(count)) + 1000
    assert reader.journal.verify() == count + 1


@pytest.mark.parametrize("count", [0, 1, 40, 64, 100, 200])
def test_a_cold_read_is_three_requests_at_any_length_when_carried(folder_store: ObjectStore, count: int):
    writer = sum_of(folder_store, carry=True)
    for _ in range(count):
        writer.transact(lambda _: {"n": 1})
    counting = Counting(folder_store)
    reader = sum_of(counting, carry=True)
    assert reader.refresh() == count
    assert counting.calls.total() <= 3
    counting.calls.clear()
    reader.refresh()
    assert counting.calls == {"find": 1}
    counting.calls.clear()
    reader.transact(lambda _: {"n": 1})
    assert counting.calls == {"find": 2, "create": 1}  # once for each store: whether it asks for audit keys
    counting.calls.clear()
    reader.transact(lambda _: {"n": 1})
    assert counting.calls == {"find": 1, "create": 1}


def test_without_carrying_a_cold_read_is_the_snapshot_and_later_entries(folder_store: ObjectStore):
    writer = sum_of(folder_store)
    for _ in range(70):
        writer.transact(lambda _: {"n": 1})
    counting = Counting(folder_store)
    assert sum_of(counting).refresh() == 70
    assert counting.calls == {"find": 1 + 6 + 1}


def test_a_warm_refresh_is_one_read(folder_store: ObjectStore):
    counting = Counting(folder_store)
    fold = sum_of(counting)
    fold.refresh()
    counting.calls.clear()
    fold.refresh()
    assert counting.calls == {"find": 1}


def test_a_decision_of_none_writes_nothing(folder_store: ObjectStore):
    fold = sum_of(folder_store)
    assert fold.transact(lambda _: None) is None
    assert fold.next == 0


def test_what_decide_raises_passes_through(folder_store: ObjectStore):
    def decide(total: int) -> dict:
        raise KeyError(total)

    with pytest.raises(KeyError):
        sum_of(folder_store).transact(decide)


def test_the_losing_writer_decides_again_after_the_winners_entry(folder_store: ObjectStore):
    mine, other = sum_of(folder_store), sum_of(folder_store)
    seen = []

    def decide(total: int) -> dict:
        if not seen:
            other.transact(lambda _: {"n": 10})
        seen.append(total)
        return {"n": total + 1}

    entry = mine.transact(decide)
    assert seen == [0, 10]
    assert entry is not None
    assert entry.number == 1
    assert mine.state == 21


def test_retries_end_in_a_conflict_after_the_patience(folder_store: ObjectStore):
    mine, other = sum_of(folder_store), sum_of(folder_store)

    def decide(_: int) -> dict:
        other.transact(lambda _: {"n": 1})
        return {"n": 1}

    with pytest.raises(Conflict):
        mine.transact(decide, patience_s=0.05)


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("damage", [b"", b"not a snapshot", b"0" * 64 + b"\n{}"])
def test_a_damaged_snapshot_is_ignored(folder_store: ObjectStore, damage: bytes, carry: bool):  # noqa: FBT001
    writer = sum_of(folder_store, carry=carry)
    for _ in range(70):
        writer.transact(lambda _: {"n": 1})
    folder_store.put("sum/snapshot.json", damage)
    assert sum_of(folder_store, carry=carry).refresh() == 70


def test_a_snapshot_of_another_schema_is_ignored(folder_store: ObjectStore):
    writer = sum_of(folder_store)
    for _ in range(64):
        writer.transact(lambda _: {"n": 1})
    counting = Counting(folder_store)
    assert sum_of(counting, schema="2").refresh() == 64
    assert counting.calls["find"] == 66


def test_an_older_snapshot_only_costs_reads(folder_store: ObjectStore):
    writer = sum_of(folder_store, carry=True)
    for _ in range(64):
        writer.transact(lambda _: {"n": 1})
    old = folder_store.get("sum/snapshot.json")
    for _ in range(80):
        writer.transact(lambda _: {"n": 1})
    folder_store.put("sum/snapshot.json", old)
    assert sum_of(folder_store, carry=True).refresh() == 144


def test_a_follower_refuses_a_broken_chain_and_keeps_its_state(folder_store: ObjectStore):
    writer, follower = sum_of(folder_store), sum_of(folder_store)
    writer.transact(lambda _: {"n": 1})
    assert follower.refresh() == 1
    forged = Entry(1, {"n": 99}, "eve", writer.journal.entry(0).at, "t", "0" * 64).with_digest()
    folder_store.create(writer.journal.key(1), forged.to_bytes())
    with pytest.raises(Damaged):
        follower.refresh()
    assert follower.state == 1


def test_an_entry_that_carries_false_predecessors_is_refused(folder_store: ObjectStore):
    writer = sum_of(folder_store, carry=True)
    writer.transact(lambda _: {"n": 1})
    writer.transact(lambda _: {"n": 1})
    key = writer.journal.key(1)
    folder_store.put(
        key, folder_store.get(key).replace(b'"carried":[{"actor":"ada"', b'"carried":[{"actor":"eve"')
    )
    with pytest.raises(Damaged):
        sum_of(folder_store, carry=True).refresh()


def test_a_failed_snapshot_fails_no_transaction(folder_store: ObjectStore, monkeypatch: pytest.MonkeyPatch):
    fold = sum_of(folder_store)

    def refuse(*_: object) -> None:
        from toque.registry import Unavailable

        raise Unavailable("away")

    monkeypatch.setattr(type(folder_store), "put", refuse)
    for _ in range(66):
        fold.transact(lambda _: {"n": 1})
    assert fold.state == 66
    monkeypatch.undo()
    fold.transact(lambda _: {"n": 1})
    assert folder_store.find("sum/snapshot.json") is not None


def _add_many(url: str, count: int) -> None:
    fold = sum_of(open_store(url), carry=True)
    for _ in range(count):
        fold.transact(lambda total: {"n": 1, "seen": total})


def test_processes_that_append_at_once_lose_nothing(processes: ForkServerContext, store_url: str):
    with ProcessPoolExecutor(4, mp_context=processes) as pool:
        for future in [pool.submit(_add_many, store_url, 20) for _ in range(4)]:
            future.result()
    fold = sum_of(open_store(store_url), carry=True)
    assert fold.refresh() == fold.next == fold.journal.verify() == 80
    assert [entry.body["seen"] for entry in fold.journal.entries()] == list(range(80))


def test_threads_that_share_a_fold_lose_nothing(folder_store: ObjectStore):
    fold = sum_of(folder_store, carry=True)
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(fold.transact, lambda t: {"n": 1, "seen": t}) for _ in range(100)]:
            future.result()
    assert [entry.body["seen"] for entry in fold.journal.entries()] == list(range(100))


def test_another_actors_fold_goes_on_without_reading_and_signs_for_itself(folder_store: ObjectStore):
    counting = Counting(folder_store)
    shared = sum_of(counting, carry=True)
    for _ in range(70):
        shared.transact(lambda _: {"n": 1})
    counting.calls.clear()
    other = shared.as_actor("bea")
    assert (other.state, other.next) == (70, 70)
    assert not counting.calls
    assert other.transact(lambda _: {"n": 5}).actor == "bea"
    assert (other.state, shared.state) == (75, 70)
    assert shared.transact(lambda _: {"n": 1}).actor == "ada"
    assert other.refresh() == shared.refresh() == sum_of(folder_store, carry=True).refresh() == 76
    assert shared.journal.verify() == 72
