"""A claim whose answer was lost or came late is known again by its holder, and by nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conditions.faults import KILLS, Fault, FaultyStore
from toque.registry import RegistryError, Unavailable
from toque.registry.lease import StoreLease
from toque.registry.store import FolderStore

FAULTS = [fault for fault in Fault if fault not in KILLS]


class Retrying(FolderStore):
    """Store whose client sends its first `create` again, as S3's does after an answer that was lost, and meets its own success."""

    sent = False

    def create(self, key: str, data: bytes) -> None:
        super().create(key, data)
        if not self.sent:
            self.sent = True
            super().create(key, data)


class Late(FolderStore):
    """Store on which the first `create` gets no answer, and takes effect right before the next one."""

    late: tuple[str, bytes] | None = None

    def create(self, key: str, data: bytes) -> None:
        if self.late is None:
            self.late = key, data
            raise Unavailable(f"{key}: no answer in time")
        if not self.find(self.late[0]):
            super().create(*self.late)
        super().create(key, data)


def lease(store: FolderStore | FaultyStore, holder: str) -> StoreLease:
    return StoreLease(store, "erasure", holder, clock=lambda: 1000.0)  # type: ignore[arg-type]  # it has the store's verbs


def leads(claim: StoreLease) -> bool:
    return claim.renew() > 1000.0


def come_and_go(store: FolderStore, holders: int) -> None:
    for number in range(holders):
        claim = lease(store, f"earlier-{number}")
        assert leads(claim)
        claim.release()


@pytest.mark.parametrize("earlier", [0, 1, 3])
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_holder_whose_claim_met_a_fault_leads_when_it_asks_again_and_no_other_does(
    tmp_path: Path, fault: Fault, earlier: int
):
    struck = 0
    for request in range(1, 9):
        store = FolderStore(tmp_path / str(request))
        come_and_go(store, earlier)
        faulty = FaultyStore(store)
        with faulty.faults.inject(fault, request) as faults:
            try:
                lease(faulty, "one").renew()
            except RegistryError:
                struck += 1
        if faults.struck is None:
            break
        again = lease(faulty, "one")
        assert leads(again), faults.struck
        assert not leads(lease(store, "one-2")), faults.struck
        assert len(list(store.list("leaders/"))) <= 2
    assert struck >= 3


@pytest.mark.parametrize("earlier", [0, 1, 3])
@pytest.mark.parametrize("kind", [Retrying, Late])
def test_a_claim_that_meets_its_own_success_is_the_holders(
    tmp_path: Path, kind: type[FolderStore], earlier: int
):
    come_and_go(FolderStore(tmp_path), earlier)
    store = kind(tmp_path)
    claim = lease(store, "one")
    try:
        claimed = leads(claim)
    except Unavailable:
        claimed = leads(lease(store, "one"))
    assert claimed
    assert not leads(lease(FolderStore(tmp_path), "one-2"))
