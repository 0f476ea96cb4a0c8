"""Room on the cluster for all workers of an experiment at once: wait for it, and refuse only what no node could ever hold.

Cards and CPUs that are missing now may come: other work ends, or the autoscaler starts nodes. A placement group asks for them, so
the autoscaler sees the demand; meanwhile the run's log and progress say what it waits for, and its time limit stands still.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from toque.clusters.ray_private import GcsClient, autoscaler_pb2, available_resources_per_node, cluster_state
from toque.functions.runtime.cards import Node, share_of
from toque.functions.runtime.errors import NoRoom
from toque.functions.runtime.run.cluster import (
    AWAY_FROM_SERVING,
    CARD,
    NODE_GROUP,
    SERVING_GROUP,
    PlacedFunction,
    away_from,
    card_selector,
)
from toque.functions.runtime.run.interruption import paused
from toque.functions.runtime.run.log import report_progress

_UNBOUNDED = 10_000  # nodes of a type without a limit
_MOST_COMING = 256  # of each type that the queue counts with
_CARD = "accelerator_type:"  # Ray's resource of a node type that names its card
_POLL_S = 1.0
_SETTLED_S = 20.0  # in which a lost node is noticed
_SURE_AFTER_S = 20.0  # of the autoscaler's answer that it can start no such nodes: a node that was just lost comes back first
_SLACK = 1e-9
_logger = logging.getLogger(__name__)

Amounts = Mapping[str, float]
Autoscaler = Literal["absent", "able", "unable"]


@dataclass(frozen=True, slots=True)
class Needed:
    """Room that is needed by one experiment: `count` workers, each with the resources `each` on one node."""

    count: int
    each: Amounts

    def __str__(self) -> str:
        each = ", ".join(f"{amount:g} {kind}" for kind, amount in sorted(self.each.items()))
        return f"{self.count} × ({each})"

    def fits(self, nodes: Iterable[Amounts]) -> bool:
        """Whether nodes with these total resources hold all workers."""
        return sum(self.held(node) for node in nodes) >= self.count

    def missing(self, nodes: Sequence[Amounts]) -> str:
        """Name the first resource of which `nodes` together have too little, or else the largest node's share."""
        for kind, each in sorted(self.each.items()):
            wanted, there = self.count * each, sum(node.get(kind, 0.0) for node in nodes)
            if wanted > there + _SLACK:
                return f"{kind}={wanted:g} is wanted and there is {kind}={there:g}"
        largest = max((self.held(node) for node in nodes), default=0)
        return f"one node holds {largest} of such workers at most"

    def held(self, node: Amounts) -> int:
        """Count the workers that one node with these resources holds."""
        shares = [int(node.get(kind, 0.0) / each + _SLACK) for kind, each in self.each.items() if each > 0]
        return min(shares, default=self.count)


@dataclass(frozen=True, slots=True)
class Nodes:
    """Nodes that an experiment may use, by their total resources; `types`: each that could be started, if Ray knows them."""

    present: Sequence[Amounts]
    types: Sequence[Amounts] | None = None


def verdict(needed: Needed, nodes: Nodes, autoscaler: Autoscaler) -> tuple[bool, str]:
    """Decide whether a demand that has no room now may wait, and say for what it waits, or why it never will have room."""
    if needed.fits(nodes.present):
        return True, "room on the nodes that are there"
    if autoscaler == "absent":
        return False, f"the cluster has no autoscaler, and {needed.missing(nodes.present)}"
    if nodes.types is not None and not needed.fits(nodes.types):
        return False, f"with all nodes that may be started, {needed.missing(nodes.types)}"
    if autoscaler == "able" or nodes.types is not None:
        return True, "the autoscaler to start nodes"
    if Needed(1, needed.each).fits(nodes.present):  # its limits are reached, and other work may leave
        return True, "the autoscaler, whose limits are reached, and other work to end"
    return False, f"the autoscaler has no node type for it, and {needed.missing(nodes.present)}"


def wait_for_room(
    count: int,
    each: Amounts,
    *,
    what: str,
    remedy: str,
    card: str | None = None,
    avoided: Collection[str] = (),
) -> None:
    """Wait until the cluster holds `count` workers with the resources `each`, away from nodes that serve.

    what: who needs them, as in "num_workers=4"; remedy: what the caller may change; card: type of the GPUs, None for any; avoided: nodes
    that are not used, by id. The run's time limit stands still.
    Raises: NoRoom if the cluster, and all nodes that its autoscaler may start, could never hold them.
    """
    needed = Needed(count, {kind: amount for kind, amount in each.items() if amount > 0})
    if not needed.each:
        return
    group = _asked(count, each, card, avoided)
    try:
        if not group.wait(_POLL_S):
            with paused():
                _wait(group, needed, avoided, what=what, remedy=remedy)
    finally:
        remove_placement_group(
            group
        )  # whoever asked takes the room at once, before its nodes are idle for long


def refuse_impossible(function: PlacedFunction) -> None:
    """Refuse a run whose own resources no node has, and none that the autoscaler may start: Ray would keep it waiting for ever.

    Raises: NoRoom.
    """
    resources = function.resources
    each = {
        "CPU": resources.num_cpus,
        "GPU": resources.num_gpus,
        "memory": float(resources.memory_bytes or 0),
    }
    if resources.num_cpus <= 1 and not any(amount for kind, amount in each.items() if kind != "CPU"):
        return  # any node has it, and to ask takes a request
    needed = Needed(1, {kind: amount for kind, amount in each.items() if amount > 0})
    anywhere = function.demand is None  # an experiment stays away from the nodes that serve
    nodes = _nodes_in_total((), serving=anywhere)
    if needed.fits(nodes.present):
        return
    autoscaler: Autoscaler = "able" if _autoscaling_state().autoscaler_state_version else "absent"
    may_wait, why = verdict(needed, nodes, autoscaler)
    if not may_wait:
        raise NoRoom(
            f"{function.name} needs {needed}, which the cluster can never hold: {why}; declare less in its Resources, or add a node"
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """Room for workers more, which is asked for and taken as soon as it is there; the autoscaler sees the demand.

    Ask only once those who are to run now have their own: it may be the last there is. It is given back when who asked ends.
    """

    groups: Sequence[PlacementGroup]

    @classmethod
    def of(cls, count: int, each: Amounts, *, card: str | None = None, avoided: Collection[str] = ()) -> Self:
        """Ask for `count` times the resources `each`, away from nodes that serve and from those avoided, by id."""
        return cls([_asked(1, each, card, avoided) for _ in range(count)])

    def came(self) -> bool:
        """Whether any of it is there; it does not wait, as `PlacementGroup.wait` does for whole seconds only."""
        return any(placement_group_table(group).get("state") == "CREATED" for group in self.groups)

    def withdraw(self) -> None:
        """Give it back, and ask no longer."""
        for group in self.groups:
            remove_placement_group(group)


def has_room_apart(count: int, each: Amounts, avoided: Collection[str], *, card: str | None = None) -> bool:
    """Whether the cluster holds so many workers away from some nodes, which are given by id, now or within some seconds."""
    group = _asked(count, each, card, avoided)
    try:
        return bool(group.wait(_SETTLED_S))
    finally:
        remove_placement_group(group)


def room_between(
    least: int,
    most: int,
    each: Amounts,
    *,
    what: str,
    remedy: str,
    card: str | None = None,
    avoided: Collection[str] = (),
) -> int:
    """Wait until the cluster holds `least` workers with the resources `each`, and say for how many of `most` it has room.

    Where there is no room for `most` within some seconds, in which nodes that were lost are noticed and those of work that just
    ended are free again, fewer are tried. Other arguments and errors are those of `wait_for_room`.
    """
    if not any(amount > 0 for amount in each.values()):
        return most
    count = most
    while count > least:
        if has_room_apart(count, each, avoided, card=card):
            return count
        count = max(least, min(count - 1, _free(each, card, avoided)))
    wait_for_room(least, each, what=what, remedy=remedy, card=card, avoided=avoided)
    return least


def _asked(count: int, each: Amounts, card: str | None, avoided: Collection[str]) -> PlacementGroup:
    selector = AWAY_FROM_SERVING | away_from(avoided) | card_selector(card, each.get("GPU", 0.0))
    bundle = {kind: amount for kind, amount in each.items() if amount > 0}
    group: PlacementGroup = placement_group(
        [bundle] * count, strategy="PACK", bundle_label_selector=[selector] * count
    )
    return group


def _free(each: Amounts, card: str | None, avoided: Collection[str]) -> int:
    """Count the workers for which there are free resources now, by what the nodes said last."""
    free: Mapping[str, Amounts] = available_resources_per_node()
    nodes = [node for node in _living_nodes(avoided) if card is None or node["Labels"].get(CARD) == card]
    needed = Needed(1, {kind: amount for kind, amount in each.items() if amount > 0})
    return sum(needed.held(free.get(node["NodeID"], {})) for node in nodes)


def _wait(group: PlacementGroup, needed: Needed, avoided: Collection[str], *, what: str, remedy: str) -> None:
    said, unable_since = "", time.monotonic()
    while not group.wait(_POLL_S):
        autoscaler = _autoscaler(group)
        may_wait, why = verdict(needed, nodes_for_experiments(avoided), autoscaler)
        if may_wait:
            unable_since = time.monotonic()
            text = f"{what} waits for {why}: it needs {needed}"
            if text != said:
                _logger.warning("%s", text)
                report_progress(0, text=text)
                said = text
        elif autoscaler == "absent" or time.monotonic() - unable_since > _SURE_AFTER_S:
            raise NoRoom(f"{what} needs {needed}, which the cluster can never hold: {why}; {remedy}")


def _autoscaler(group: PlacementGroup) -> Autoscaler:
    """Read what the autoscaler said last of a placement group that has no room; only that of Ray's version 2 says so."""
    state = _autoscaling_state()
    if not state.autoscaler_state_version:
        return "absent"
    infeasible = state.infeasible_gang_resource_requests
    return "unable" if any(group.id.hex() in gang.details for gang in infeasible) else "able"


def _autoscaling_state() -> Any:
    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    reply: Any = autoscaler_pb2.GetClusterStatusReply.FromString(client.get_cluster_status(timeout_s=10))
    return reply.autoscaling_state


def cards() -> list[Node] | None:
    """List the nodes with GPUs that experiments may use, and those that the autoscaler may start; None if Ray does not know the latter."""
    present = [each for each in _living_nodes() if each["Resources"].get("GPU", 0) > 0]
    found = [
        _node(
            f"{each['NodeManagerAddress']}:{each['NodeManagerPort']}",
            each["Resources"],
            each["Labels"].get(CARD),
        )
        for each in present
    ]
    config: Any = cluster_state.get_cluster_config()
    if config is None or not config.node_group_configs:
        return None if _autoscaling_state().autoscaler_state_version else found
    there = Counter(each["Labels"].get(NODE_GROUP) for each in present)
    for group in config.node_group_configs:
        resources = dict(group.resources)
        if group.name == SERVING_GROUP or resources.get("GPU", 0) <= 0:
            continue
        most = group.max_count if group.max_count >= 0 else _UNBOUNDED
        card = next((kind.removeprefix(_CARD) for kind in resources if kind.startswith(_CARD)), None)
        missing = min(_MOST_COMING, most - there[group.name])
        found += [_node(f"{group.name}/{number}", resources, card, coming=True) for number in range(missing)]
    return found


def _node(name: str, resources: Amounts, card: str | None, *, coming: bool = False) -> Node:
    cpus, memory = resources.get("CPU", math.inf), resources.get("memory", math.inf)
    return Node(name, resources["GPU"] * share_of(card), card, cpus, memory, coming)


def _living_nodes(avoided: Collection[str] = (), *, serving: bool = False) -> list[Any]:
    """List the nodes that are there and are not avoided, as Ray describes them. serving: also those that serve."""
    return [
        node
        for node in ray.nodes()  # type: ignore[no-untyped-call]  # Ray leaves it so
        if node["Alive"]
        and (serving or node["Labels"].get(NODE_GROUP) != SERVING_GROUP)
        and node["NodeID"] not in avoided
    ]


def nodes_for_experiments(avoided: Collection[str] = ()) -> Nodes:
    """List what nodes that do not serve have in total, and what those have that could be started. avoided: nodes to leave out, by id."""
    return _nodes_in_total(avoided, serving=False)


def _nodes_in_total(avoided: Collection[str], *, serving: bool) -> Nodes:
    present = [node["Resources"] for node in _living_nodes(avoided, serving=serving)]
    config: Any = cluster_state.get_cluster_config()
    if config is None or not config.node_group_configs:
        return Nodes(present)
    types: list[Amounts] = []
    for group in config.node_group_configs:
        if serving or group.name != SERVING_GROUP:
            types += [dict(group.resources)] * (group.max_count if group.max_count >= 0 else _UNBOUNDED)
    return Nodes(present, types)
