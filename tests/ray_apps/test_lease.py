from dataclasses import dataclass
from pathlib import Path

from ray_apps.lease import Lease
from registry import ObjectStore, open_store


@dataclass
class Hand:
    """A clock moved by hand, in seconds."""

    at: float = 1000.0

    def __call__(self) -> float:
        return self.at


def two(tmp_path: Path) -> tuple[Lease, Lease, Hand, ObjectStore]:
    store, clock = open_store(f"file://{tmp_path}"), Hand()
    one, other = (Lease(store, "ticker", holder=name, term_s=10, clock=clock) for name in ("one", "other"))
    return one, other, clock, store


def test_one_leads(tmp_path: Path) -> None:
    one, other, _, _ = two(tmp_path)
    assert (one.held(), other.held(), one.held()) == (True, False, True)
    assert (one.leads, other.leads) == (True, False)


def test_the_leader_stays_leader(tmp_path: Path) -> None:
    one, other, clock, _ = two(tmp_path)
    for _ in range(200):
        assert one.held()
        assert not other.held()
        clock.at += 1.3


def test_when_the_leader_dies_another_leads_within_two_terms(tmp_path: Path) -> None:
    one, other, clock, _ = two(tmp_path)
    assert one.held()
    clock.at += 9  # its last breath claims the next term
    assert one.held()
    clock.at += 10
    assert not other.held()
    clock.at += 10
    assert other.held()


def test_old_terms_are_swept(tmp_path: Path) -> None:
    one, _, clock, store = two(tmp_path)
    for _ in range(100):
        one.held()
        clock.at += 5
    assert len(list(store.list("leases/"))) <= 3
