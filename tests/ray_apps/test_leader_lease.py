from dataclasses import dataclass
from pathlib import Path

from ray_apps.leader_lease import LeaderLease
from registry import ObjectStore, open_store


@dataclass
class ManualClock:
    """A clock that a test moves, in seconds."""

    at: float = 1000.0

    def __call__(self) -> float:
        return self.at


def two(tmp_path: Path) -> tuple[LeaderLease, LeaderLease, ManualClock, ObjectStore]:
    store, clock = open_store(f"file://{tmp_path}"), ManualClock()
    one, other = (
        LeaderLease(store, "ticker", holder=name, term_s=10, clock=clock) for name in ("one", "other")
    )
    return one, other, clock, store


def test_only_one_holder_leads(tmp_path: Path) -> None:
    one, other, _, _ = two(tmp_path)
    assert (one.renew(), other.renew(), one.renew()) == (True, False, True)
    assert (one.is_leader, other.is_leader) == (True, False)


def test_the_leader_stays_leader(tmp_path: Path) -> None:
    one, other, clock, _ = two(tmp_path)
    for _ in range(200):
        assert one.renew()
        assert not other.renew()
        clock.at += 1.3


def test_when_the_leader_dies_another_leads_within_two_terms(tmp_path: Path) -> None:
    one, other, clock, _ = two(tmp_path)
    assert one.renew()
    clock.at += 9  # in the second half of its term it claims the next
    assert one.renew()
    clock.at += 10
    assert not other.renew()
    clock.at += 10
    assert other.renew()


def test_ended_terms_are_deleted(tmp_path: Path) -> None:
    one, _, clock, store = two(tmp_path)
    for _ in range(100):
        one.renew()
        clock.at += 5
    assert len(list(store.list("leases/"))) <= 3
