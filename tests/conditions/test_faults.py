"""The matrix of faults itself: every request is struck once by every fault, and a verb that breaks its promise is found out."""

from pathlib import Path

import pytest
import redis

from tests.conditions.faults import Fault, Faults, FaultyStore, KilledError, Verb, faulty_redis, run_cells
from tests.redis_server import running_redis
from toque.registry.errors import Forbidden, Unavailable
from toque.registry.store import FolderStore


class Pair:
    """Two objects that belong together, and a verb that writes them."""

    def __init__(self, store: FaultyStore) -> None:
        self.store = store

    def write_both(self) -> None:
        self.store.put("first", b"1")
        self.store.put("second", b"1")

    def write_careless(self) -> None:
        if self.store.find("first") is None:
            self.write_both()

    def check(self) -> None:
        assert self.store.find("first") == self.store.find("second") == b"1"


def test_a_verb_that_may_be_repeated_holds_in_every_cell(tmp_path: Path) -> None:
    verb = Verb("both", prepare=Pair, act=Pair.write_both, check=Pair.check)
    matrix = run_cells(verb, lambda number: FolderStore(tmp_path / str(number)))
    assert matrix.cells == 2 * len(Fault)
    assert not matrix.failures, matrix


def test_a_verb_that_leaves_half_is_found_out(tmp_path: Path) -> None:
    verb = Verb("careless", prepare=Pair, act=Pair.write_careless, check=Pair.check)
    matrix = run_cells(verb, lambda number: FolderStore(tmp_path / str(number)))
    assert matrix.cells == 2 * len(Fault) + 3  # the read cannot fail after an effect
    assert {cell.partition("of")[0] for cell in matrix.failures} == {"request 2 ", "request 3 "}


@pytest.mark.parametrize(
    ("fault", "error", "before", "after"),
    [
        (Fault.UNAVAILABLE_BEFORE, Unavailable, None, None),
        (Fault.UNAVAILABLE_AFTER, Unavailable, b"1", b"1"),
        (Fault.TIMED_OUT, Unavailable, None, b"1"),
        (Fault.FORBIDDEN, Forbidden, None, None),
        (Fault.KILLED_BEFORE, KilledError, None, None),
        (Fault.KILLED_AFTER, KilledError, b"1", b"1"),
    ],
)
def test_a_fault_has_its_effect_and_its_error(
    tmp_path: Path, fault: Fault, error: type[BaseException], before: bytes | None, after: bytes | None
) -> None:
    store = FaultyStore(FolderStore(tmp_path))
    with store.faults.inject(fault, 1):
        with pytest.raises(error):
            store.create("a", b"1")
        assert store.store.find("a") == before
        if error is KilledError:
            with pytest.raises(KilledError):
                store.find("a")
        else:
            store.find("b")
            assert store.find("a") == after
    assert store.find("a") == after


def test_commands_and_pipelines_of_redis_suffer_too(tmp_path: Path) -> None:
    faults = Faults()
    with running_redis(tmp_path) as server, redis.Redis.from_url(server.url) as client, faulty_redis(faults):
        with faults.inject(Fault.UNAVAILABLE_AFTER, 1), pytest.raises(redis.ConnectionError):
            client.set("a", 1)
        assert client.get("a") == b"1"
        with faults.inject(Fault.TIMED_OUT, 1), pytest.raises(redis.TimeoutError):
            client.pipeline().set("a", 2).set("b", 2).execute()
        assert client.mget("a", "b") == [b"2", b"2"]
        assert [request.name for request in faults.requests] == ["PIPELINE"]
