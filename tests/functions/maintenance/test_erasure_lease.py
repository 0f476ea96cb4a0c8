"""One erasure at a time holds the lease: contenders that stall, clocks that differ, renewals that fail."""

from __future__ import annotations

import os
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.conditions.faults import KILLS, Fault, FaultyStore
from toque.functions.maintenance.erasure.jobs import TERM_S, Holder, MaintenanceError, only_erasure
from toque.functions.maintenance.erasure.places import erase_from_tables
from toque.functions.maintenance.erasure.record import PendingErasure
from toque.functions.maintenance.erasure.subject import Subject, Traces
from toque.registry import RegistryError, Table, Unavailable, utc_now
from toque.registry.store import FolderStore


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


class Stalling:
    """The store of a contender before whose `create` others come and go."""

    def __init__(self, store: FolderStore, meanwhile: Any) -> None:
        self._store, self._meanwhile = store, meanwhile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def create(self, key: str, data: bytes) -> None:
        meanwhile, self._meanwhile = self._meanwhile, lambda: None
        meanwhile()
        self._store.create(key, data)


@pytest.mark.parametrize("earlier", range(4))
def test_a_contender_that_stalled_while_others_came_and_went_is_refused(store: FolderStore, earlier: int):
    with ExitStack() as holder:

        def meanwhile() -> None:
            for _ in range(earlier):
                with only_erasure(store):
                    pass
            holder.enter_context(only_erasure(store))

        with only_erasure(store):
            pass
        with (
            pytest.raises(MaintenanceError, match="another erasure is under way"),
            only_erasure(Stalling(store, meanwhile)),  # type: ignore[arg-type]  # it has the store's verbs
        ):
            pass
    with only_erasure(store):
        pass


@pytest.mark.parametrize("skew", [timedelta(days=-1), timedelta(hours=1), timedelta(days=400)])
def test_a_machine_whose_clock_differs_takes_no_lease_that_is_held(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, skew: timedelta
):
    with only_erasure(store):
        moved = utc_now() + skew
        monkeypatch.setattr("toque.registry.times.utc_now", lambda: moved)
        with pytest.raises(MaintenanceError):
            Holder(store, clock=skew.total_seconds)


def come_and_go(store: FolderStore | FaultyStore) -> None:
    with only_erasure(store):  # type: ignore[arg-type]  # it has the store's verbs
        pass


@pytest.mark.parametrize("earlier", [0, 1, 3])
@pytest.mark.parametrize("fault", [fault for fault in Fault if fault not in KILLS], ids=str)
def test_a_claim_or_release_that_met_a_fault_keeps_the_next_erasure_of_the_process_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, earlier: int
):
    """And while that one works, no other of this process or another one does."""
    struck = 0
    for request in range(1, 12):
        store = FolderStore(tmp_path / str(request))
        for _ in range(earlier):
            come_and_go(store)
        faulty = FaultyStore(store)
        with faulty.faults.inject(fault, request) as faults:
            try:
                come_and_go(faulty)
            except RegistryError:
                struck += 1
        if faults.struck is None:
            break
        with only_erasure(faulty) as check:  # type: ignore[arg-type]  # as above
            check()
            for process in (os.getpid(), -1):
                monkeypatch.setattr("os.getpid", lambda process=process: process)
                with pytest.raises(MaintenanceError, match="another erasure is under way"):
                    come_and_go(store)
            monkeypatch.undo()
    assert struck >= 3


def test_a_forked_process_claims_nothing_in_the_name_of_its_parent(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
):
    faulty = FaultyStore(store)
    with faulty.faults.inject(Fault.UNAVAILABLE_AFTER, 2), pytest.raises(Unavailable):
        Holder(faulty)  # type: ignore[arg-type]  # as above
    with monkeypatch.context() as child:
        child.setattr("os.getpid", lambda: -1)
        with pytest.raises(MaintenanceError, match="another erasure is under way"):
            Holder(store)
    Holder(store).check()


def test_a_holder_that_gave_the_lease_back_may_write_no_more(store: FolderStore):
    holder = Holder(store)
    holder.release()
    with pytest.raises(MaintenanceError):
        holder.check()
    Holder(store).check()


class Unwritable(FolderStore):
    """A store that refuses to rewrite objects while it is `away`."""

    away = False

    def put(self, key: str, data: bytes) -> None:
        if self.away:
            raise Unavailable(f"{key}: the store is away")
        super().put(key, data)


def test_a_holder_whose_renewals_fail_may_write_until_its_term_ends_and_never_again(tmp_path: Path):
    store, now = Unwritable(tmp_path), [1000.0]
    holder = Holder(store, clock=lambda: now[0])
    store.away = True
    now[0] += TERM_S / 2
    with pytest.raises(Unavailable):
        holder.renew()
    holder.check()
    now[0] += TERM_S / 2
    with pytest.raises(MaintenanceError, match="could not be renewed for 60 s"):
        holder.check()
    store.away = False
    holder.renew()
    with pytest.raises(MaintenanceError, match="could not be renewed"):
        holder.check()


def test_a_holder_that_renews_keeps_the_lease_for_many_terms(store: FolderStore):
    now = [1000.0]
    holder = Holder(store, clock=lambda: now[0])
    for _ in range(10):
        now[0] += TERM_S / 3
        holder.renew()
        holder.check()
        with pytest.raises(MaintenanceError):
            Holder(store)
    holder.release()
    Holder(store).check()


@pytest.mark.parametrize("lost_at", range(1, 5))
def test_an_erasure_that_lost_its_lease_rewrites_no_table_from_then_on(store: FolderStore, lost_at: int):
    for name in "abc":
        Table(store, name).append(pa.table({"unit": ["user-1234", "user-12345"]}))
    pending = PendingErasure(
        id="1", subject=Subject(unit="user-1234"), requested_at=utc_now(), requested_by="a"
    )
    checks = iter(range(1, lost_at))

    def check() -> None:
        if next(checks, None) is None:
            raise MaintenanceError("lost")

    with pytest.raises(MaintenanceError):
        erase_from_tables(
            store, Traces.of(pending.subject, key=None), pending, save=lambda: None, check=check
        )
    rows = [Table(store, name).read().num_rows for name in "abc"]
    assert rows == [1 if lost_at > 2 * (number + 1) else 2 for number in range(3)]
