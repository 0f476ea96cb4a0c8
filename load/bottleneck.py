"""Measure the model's costs here, check it by a run it has not seen, and print what breaks first at each size.

python -m toque.load.bottleneck --nodes 100 --models 1000 --predictions 1000000
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from toque.load.benchmarks.harness import main, say, temporary
from toque.load.benchmarks.servers import redis_server
from toque.load.capacity_model import Cluster, Costs, Demand, parts, s3_price_a_month
from toque.load.capacity_model.measure import drain_costs, drain_seconds, record_bytes, redis_costs
from toque.load.capacity_model.model import nodes_needed, replicas_of
from toque.registry import open_store

_SIZES = ((3, 10, 1_000), (10, 100, 30_000), (100, 1_000, 1_000_000))


def run(
    *,
    nodes: Annotated[int | None, "nodes, instead of three sizes"] = None,
    models: Annotated[int, "models that are served"] = 100,
    predictions: Annotated[float, "predictions a second"] = 1_000.0,
    keyed: Annotated[float, "share of them that read features by key"] = 0.5,
    labels: Annotated[float, "labels for a prediction"] = 0.1,
    redis_shards: int = 1,
    drainers: Annotated[int, "workspaces, each drained by itself"] = 1,
    drain_every: Annotated[float, "seconds"] = 10.0,
    poll: Annotated[float, "seconds; 0: replicas are woken by Redis"] = 0.25,
    as_written: Annotated[bool, "the costs in the code instead of measured ones"] = False,
) -> None:
    """Print the table of what breaks first, size by size."""
    costs = Costs() if as_written else measured()
    for count, served, predictions_s in ((nodes, models, predictions),) if nodes else _SIZES:
        demand = Demand(served, predictions_s, keyed, labels_s=predictions_s * labels)
        cluster = Cluster(count, redis_shards=redis_shards, drainers=drainers)
        show(demand, replace(cluster, drain_every_s=drain_every, poll_s=poll), costs)


def measured() -> Costs:
    """Measure the costs on this machine, and print how far the model is from a drain that it has not seen."""
    with temporary() as folder, redis_server(folder) as url:
        row_s, commit_s = drain_costs(lambda name: open_store(f"file://{folder}/{name}"))
        seen = drain_seconds(open_store(f"file://{folder}/check"), rows=6_000, models=12)
        command_s, byte_s = redis_costs(url)
    told = 6_000 * row_s + 12 * commit_s
    say(f"a row {row_s * 1e6:.1f} µs, a commit {commit_s * 1e3:.1f} ms")
    say(f"Redis: a command {command_s * 1e6:.1f} µs, a byte {byte_s * 1e9:.2f} ns")
    say(f"a drain of 6,000 rows of 12 models: {seen:.2f} s, told {told:.2f} s ({told / seen:.2f})")
    costs = Costs(row_s=row_s, commit_s=commit_s, record_bytes=record_bytes())
    return replace(costs, redis_command_s=command_s, redis_byte_s=byte_s)


def show(demand: Demand, cluster: Cluster, costs: Costs) -> None:
    """Print the parts of a cluster, the one that breaks first at the top."""
    say(
        f"\n{cluster.nodes} nodes of {cluster.cores} cores, {demand.models:,} models, {demand.predictions_s:,.0f} "
        f"predictions/s: {replicas_of(demand, cluster, costs):,} replicas, {nodes_needed(demand, cluster, costs)} nodes needed, "
        f"S3 requests ${s3_price_a_month(demand, cluster, costs):,.0f} a month"
    )
    for part in parts(demand, cluster, costs):
        say(
            f"  {part.name:<20}{part.utilisation:>9.2f}  {part.verdict:<7}{part.load:>12,.1f} of {part.capacity:,.0f} {part.unit}"
            f"{'; ' + part.remedy if part.verdict else ''}"
        )


if __name__ == "__main__":
    main(run)
