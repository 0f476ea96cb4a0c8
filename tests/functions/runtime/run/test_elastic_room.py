"""Room for fewer workers than were asked for, and for the missing ones as it comes, on a cluster of two CPUs."""

from collections.abc import Callable

import pytest
import ray

from tests.waiting import until
from toque.functions.runtime.errors import NoRoom
from toque.functions.runtime.run import room
from toque.functions.runtime.run.room import Asked, has_room_apart, room_between

pytestmark = pytest.mark.ray
CPU = {"CPU": 1.0}


def test_there_is_room_for_as_many_as_are_free(
    shared_ray: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared_ray(2)
    monkeypatch.setattr(room, "_SETTLED_S", 1.0)
    until(lambda: room_between(1, 2, CPU, what="num_workers=2", remedy="") == 2)
    assert room_between(1, 5, CPU, what="num_workers=5", remedy="") == 2


def test_nodes_that_are_avoided_give_no_room(
    shared_ray: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared_ray(2)
    monkeypatch.setattr(room, "_SETTLED_S", 1.0)
    (node,) = (each["NodeID"] for each in ray.nodes() if each["Alive"])
    until(lambda: has_room_apart(2, CPU, {"0" * len(node)}))
    assert not has_room_apart(1, CPU, {node})
    assert room._free(CPU, None, {node}) == 0
    with pytest.raises(NoRoom, match="the cluster can never hold"):
        room_between(1, 2, CPU, what="num_workers=2", remedy="", avoided={node, "0" * len(node)})


def test_what_is_missing_comes_once_it_is_free(shared_ray: Callable[[int], None]) -> None:
    shared_ray(2)
    held = Asked.of(2, CPU)
    until(lambda: all(Asked([group]).came() for group in held.groups))
    missing = Asked.of(1, CPU)
    assert not missing.came()
    held.withdraw()
    until(missing.came)
    missing.withdraw()
