"""The model: demands on the parts that all nodes share, from a few costs that were measured on one machine.

Every part is a rate of work over a capacity. Parts that grow with the nodes (replicas, HAProxy) are asked how many nodes they
need; the others break. There is no queueing in it: from a utilisation of .7 on, count on waiting.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

_SECONDS_A_MONTH = 30 * 86_400
_GATEWAYS = 2
_WAITS = 0.7  # from this utilisation on a queue is felt


@dataclass(frozen=True, slots=True)
class Demand:
    """Demand of the users on a platform. models: served; predictions_s: by all together; keyed: share that reads features by key; labels_s,
    invocations_s: durable calls and labels a second; labels_a_request: that a client sends at once.
    """

    models: int
    predictions_s: float
    keyed: float = 0.5
    labels_s: float = 0.0
    labels_a_request: float = 25.0
    invocations_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """Cluster that answers the demand. cores: of a node; replicas: of a model at least, and at most what its traffic needs; redis_shards: 1 for a
    server or Sentinels; drainers: processes that drain, each other workspaces' logs; drain_every_s: of a schedule; commits_at_once: of a drain; poll_s: how
    often a replica reads its traffic policy in the store, 0: Redis wakes it. door_threads: of a node's HAProxy; network_bytes_s: of a
    node, one way.
    """

    nodes: int
    cores: int = 16
    replicas: int = 2
    redis_shards: int = 1
    drainers: int = 1
    drain_every_s: float = 10.0
    commits_at_once: int = 8
    poll_s: float = 0.25
    ship_every_s: float = 0.05
    door_threads: int = 1
    network_bytes_s: float = 1.25e9


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs of single steps, measured on one core or taken from a source that docs/scale.md names.

    replica_cpu_s, door_cpu_s: of a prediction, in its replica and in HAProxy; message_bytes: of a request and its answer; record_bytes: of a logged prediction in Redis;
    redis_command_s, redis_chunk_s: of a small command, and of a chunk that a writer ships; redis_byte_s: of a byte through a server; row_s, commit_s: of
    a row and of a commit (of a model) in a drain, its waiting for the store left out; commit_puts, commit_gets: requests of a commit
    to S3, lists among the first as they cost the same; commit_turns: how many of them wait for the one before, each store_latency_s; store_put_s, store_get_s: requests a second that one
    prefix of a bucket takes; serve_actors: actors that Ray's head was shown to hold; entries_s: that one journal takes.
    """

    replica_cpu_s: float = 1 / 8_000
    door_cpu_s: float = 1 / 25_000
    message_bytes: float = 1_200.0
    record_bytes: float = 300.0
    redis_command_s: float = 12e-6
    redis_chunk_s: float = 100e-6
    redis_byte_s: float = 0.4e-9
    row_s: float = 20e-6
    commit_s: float = 0.006
    store_latency_s: float = 0.03
    commit_puts: float = 5.5
    commit_gets: float = 40.0
    commit_turns: float = 22.0
    store_put_s: float = 3_500.0
    store_get_s: float = 5_500.0
    serve_actors: float = 20_000.0
    entries_s: float = 100.0
    invocation_entries: float = 5.0
    put_price: float = 0.005 / 1_000
    get_price: float = 0.0004 / 1_000

    @property
    def whole_commit_s(self) -> float:
        """Time of a commit, its waiting for the store included."""
        return self.commit_s + self.commit_turns * self.store_latency_s


@dataclass(frozen=True, slots=True)
class Part:
    """Shared part of a cluster. load, capacity: in `unit`; remedy: what raises the capacity."""

    name: str
    load: float
    capacity: float
    unit: str
    remedy: str

    @property
    def utilisation(self) -> float:
        """Load over capacity; above 1 the part cannot keep up."""
        return self.load / self.capacity

    @property
    def verdict(self) -> str:
        """Whether the part `breaks`, or requests wait for it (`waits`); empty where it has room."""
        return "breaks" if self.utilisation > 1 else "waits" if self.utilisation > _WAITS else ""


def replicas_of(demand: Demand, cluster: Cluster, costs: Costs) -> int:
    """Number of replicas of all models: those each has at least, or a core for each that the traffic keeps busy."""
    return max(cluster.replicas * demand.models, ceil(demand.predictions_s * costs.replica_cpu_s))


def store_requests(demand: Demand, cluster: Cluster, costs: Costs) -> tuple[float, float]:
    """Writes and reads of the store a second: commits of drains, polls of replicas, entries of invocations."""
    polls = replicas_of(demand, cluster, costs) / cluster.poll_s if cluster.poll_s else 0.0
    commits = _commits_s(demand, cluster)
    entries = demand.invocations_s * costs.invocation_entries
    return commits * costs.commit_puts + entries, polls + commits * costs.commit_gets + 2 * entries


def chunks_s(demand: Demand, cluster: Cluster, costs: Costs) -> float:
    """Chunks of the log that writers ship to Redis a second: each sends one a round."""
    replicas = replicas_of(demand, cluster, costs)
    labels = min(demand.labels_s / demand.labels_a_request, _GATEWAYS / cluster.ship_every_s)
    return min(demand.predictions_s, replicas / cluster.ship_every_s) + labels


def parts(demand: Demand, cluster: Cluster, costs: Costs) -> list[Part]:
    """List the shared parts of a cluster, the one that breaks first at the top."""
    replicas = replicas_of(demand, cluster, costs)
    rows_s = demand.predictions_s + demand.labels_s
    chunks = chunks_s(demand, cluster, costs) * costs.redis_chunk_s
    redis = chunks + demand.predictions_s * demand.keyed * costs.redis_command_s
    redis += 2 * rows_s * costs.record_bytes * costs.redis_byte_s
    puts, gets = store_requests(demand, cluster, costs)
    committing = _commits_s(demand, cluster) * costs.whole_commit_s
    drain = rows_s * costs.row_s + committing / cluster.commits_at_once
    answering = demand.predictions_s * (costs.replica_cpu_s + costs.door_cpu_s)
    nodes, cores = cluster.nodes, cluster.nodes * cluster.cores
    door_cpu = demand.predictions_s * costs.door_cpu_s
    # from the caller to a door, and from there to a replica on another node
    network = 2 * demand.predictions_s * costs.message_bytes
    threads = "more nodes that serve, or more threads (RAY_SERVE_HAPROXY_NBTHREAD)"
    pools, drains = "pools of small models", "workspaces, each drained by itself; longer intervals"
    found = [
        Part("replicas and doors", answering, cores, "cores", "more nodes"),
        Part("HAProxy", door_cpu, nodes * cluster.door_threads, "busy threads", threads),
        Part("network", network, nodes * cluster.network_bytes_s, "bytes/s", "more nodes; binary tensors"),
        Part("replicas' processes", replicas, cores * 4, "processes", pools),
        Part("Redis", redis, cluster.redis_shards, "busy servers", "a Redis Cluster of more shards"),
        Part("drain", drain, cluster.drainers, "busy processes", drains),
        Part("store, reads", gets, costs.store_get_s, "requests/s", "wake replicas by Redis"),
        Part("store, writes", puts, costs.store_put_s, "requests/s", "longer intervals between drains"),
        Part("Ray's head", replicas + 2 * nodes, costs.serve_actors, "actors", pools),
        Part("queue of one gateway", demand.invocations_s, costs.entries_s, "entries/s", "more gateways"),
    ]
    return sorted(found, key=lambda part: -part.utilisation)


def s3_price_a_month(demand: Demand, cluster: Cluster, costs: Costs) -> float:
    """Price of the requests to S3 in a month, in dollars; storage and transfer left aside."""
    puts, gets = store_requests(demand, cluster, costs)
    return (puts * costs.put_price + gets * costs.get_price) * _SECONDS_A_MONTH


def nodes_needed(demand: Demand, cluster: Cluster, costs: Costs, *, utilisation: float = 0.7) -> int:
    """Number of nodes that answer with so much of their cores busy, and have room for every replica's process."""
    busy = demand.predictions_s * (costs.replica_cpu_s + costs.door_cpu_s) / (cluster.cores * utilisation)
    return max(1, ceil(busy), ceil(replicas_of(demand, cluster, costs) / (cluster.cores * 4)))


def _commits_s(demand: Demand, cluster: Cluster) -> float:
    """Commits a second: one for each model in each drain, and one for the labels."""
    asked = min(demand.models, demand.predictions_s * cluster.drain_every_s)
    return (asked + (1 if demand.labels_s else 0)) / cluster.drain_every_s
