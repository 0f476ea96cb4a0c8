"""Watch over the cluster's nodes: which of them have fallen silent, seconds after it and long before Ray gives them up.

A node answers a health check of its raylet, which a server's own thread handles, busy or not. One that misses two checks in a
row is silent: new runs are put elsewhere, which costs nothing if it was wrong. What else becomes of a silent node's runs is
for the caller to decide, by how long the silence has lasted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache

import grpc
import ray

from toque.clusters.ray_private import GcsClient, init_grpc_channel
from toque.functions.runtime.run import cluster

EVERY_S = 1.0
EACH_S = 0.005  # of a round for each node: of a thousand nodes each is asked every five seconds
ANSWER_S = 0.8
MISSED = 2
STALLED_S = 3.0
UNUSED_S = 10.0
REMEMBERED_S = 60.0  # longer than any lease that is still to be judged
_HEALTH = "/grpc.health.v1.Health/Check"

Nodes = Mapping[str, str]
"""Id of each node by the address of its raylet."""


@dataclass(frozen=True)
class Silence:
    """Result of the rounds of checks so far: for how long each node has not answered.

    A round that comes or ends late shows that the watcher itself was stalled, and rounds without any answer that it is cut off:
    then nobody counts as silent.
    missed: checks without an answer, since when and until when; left: nodes that Ray gave up, and when.
    """

    nodes: Nodes = field(default_factory=dict)
    missed: Mapping[str, tuple[int, float, float]] = field(default_factory=dict)
    left: Mapping[str, float] = field(default_factory=dict)
    next_by: float = float("inf")

    def after(self, nodes: Nodes, answered: Collection[str], *, begun: float, ended: float) -> Silence:
        """Result after one more round, in which all `nodes` were asked between `begun` and `ended`."""
        before = self.missed if begun <= self.next_by else {}
        missed = {}
        for each in nodes.keys() - answered if answered and ended - begun <= STALLED_S else ():
            checks, since, _ = before.get(each, (0, begun, begun))
            missed[each] = (checks + 1, since, ended)
        left = {**self.left, **dict.fromkeys(self.nodes, ended)}
        kept = {each: at for each, at in left.items() if each not in nodes and ended - at < REMEMBERED_S}
        return Silence(nodes, missed, kept, next_by=ended + period_s(nodes) + STALLED_S)

    def seconds(self, address: str | None) -> float:
        """How long the node at an address has been silent: 0 if it answers or is not known, infinity if it left."""
        if address is None:
            return 0.0
        if address in self.left:
            return float("inf")
        checks, since, until = self.missed.get(address, (0, 0.0, 0.0))
        return until - since if checks >= MISSED else 0.0

    def is_lost(self, node: str) -> bool:
        """Whether the node of an id is silent now, or Ray gave it up; False before the first round."""
        return bool(self.nodes) and (node in self.silent().values() or node not in self.nodes.values())

    def silent(self) -> Nodes:
        """The nodes that are silent now."""
        return {each: self.nodes[each] for each, (checks, *_) in self.missed.items() if checks >= MISSED}


class NodeWatch:
    """Watch of one process, whose thread asks every node once a second for as long as somebody wants to know.

    find_nodes: lists the nodes that Ray believes alive; ask: which of some addresses answer.
    """

    def __init__(
        self,
        *,
        find_nodes: Callable[[], Nodes] | None = None,
        ask: Callable[[Collection[str]], Collection[str]] | None = None,
    ) -> None:
        self._find_nodes = find_nodes or _living_nodes
        self._ask = ask or _Checks().answering
        self._silence = Silence()
        self._wanted_at = 0.0
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def silent(self) -> Nodes:
        """The nodes that are silent now, as far as is known without waiting."""
        return self._silence.silent()

    def seconds(self, address: str | None) -> float:
        """How long the node at an address has been silent; see `Silence`."""
        return self._silence.seconds(address)

    def is_lost(self, node: str) -> bool:
        """Whether the node of an id is silent or given up, as far as is known without waiting."""
        return self._silence.is_lost(node)

    def keep_watching(self) -> None:
        """Ask the nodes for ten more seconds; without a cluster there are none."""
        if not cluster.running():
            return
        with self._lock:
            self._wanted_at = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="node-watch", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        try:
            while time.monotonic() - self._wanted_at < UNUSED_S and cluster.running():
                self._round()
        finally:
            with self._lock:
                self._thread, self._silence = None, Silence()

    def _round(self) -> None:
        begun = time.monotonic()
        nodes = self._find_nodes() or self._silence.nodes
        answered = self._ask(nodes)
        self._silence = self._silence.after(nodes, answered, begun=begun, ended=time.monotonic())
        time.sleep(max(0.0, begun + period_s(nodes) - time.monotonic()))


@cache
def node_watch() -> NodeWatch:
    """Return the watch that this process's executors share."""
    return NodeWatch()


def period_s(nodes: Collection[str]) -> float:
    """Seconds from one round to the next."""
    return max(EVERY_S, len(nodes) * EACH_S)


def _living_nodes() -> Nodes:
    """List the nodes that Ray's head believes alive; none while it is away."""
    alive = ray.core.generated.gcs_pb2.GcsNodeInfo.ALIVE  # type: ignore[attr-defined]  # compiled, without types
    try:
        found = _head(ray.get_runtime_context().gcs_address).get_all_node_info(timeout=ANSWER_S)
    except Exception:  # noqa: BLE001  # Ray's client raises several kinds; the nodes known before are asked on
        return {}
    return {
        f"{node.node_manager_address}:{node.node_manager_port}": node_id.hex()
        for node_id, node in found.items()
        if node.state == alive
    }


@lru_cache(maxsize=1)
def _head(address: str) -> GcsClient:
    return GcsClient(address=address)


class _Checks:
    """Health checks of raylets, whose connections are kept while they are answered."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.Channel] = {}

    def answering(self, addresses: Collection[str]) -> set[str]:
        """Ask every address at once; returns those that answered in time, with an error or without."""
        calls = {each: self._call(each) for each in addresses}
        answered = {each for each, call in calls.items() if _is_answered(call)}
        for each in [each for each in self._channels if each not in answered]:
            self._channels.pop(each).close()  # its connection may be half open for minutes after it heals
        return answered

    def _call(self, address: str) -> grpc.Future:
        if address not in self._channels:
            options = [("grpc.use_local_subchannel_pool", 1)]
            self._channels[address] = init_grpc_channel(address, options=options)
        ask = self._channels[address].unary_unary(_HEALTH)
        return ask.future(b"", timeout=ANSWER_S)


def _is_answered(call: grpc.Future) -> bool:
    error = call.exception()
    unanswered = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    return error is None or error.code() not in unanswered
