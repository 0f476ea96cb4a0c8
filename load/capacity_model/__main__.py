"""Measure the model's costs here, check it by a run it has not seen, and print what breaks first at each size.

python -m toque.load.capacity_model --nodes 100 --models 1000 --predictions 1000000
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from toque.load.benchmarks.prep.fixtures import redis_server
from toque.load.capacity_model.measure import (
    drain_costs,
    drain_seconds,
    folders,
    record_bytes,
    redis_costs,
)
from toque.load.capacity_model.model import (
    Cluster,
    Costs,
    Demand,
    nodes_needed,
    parts,
    replicas_of,
    s3_price_a_month,
)

_SIZES = ((3, 10, 1_000), (10, 100, 30_000), (100, 1_000, 1_000_000))


def main() -> None:
    """Print the table of what breaks first, size by size."""
    parser = argparse.ArgumentParser(prog="python -m toque.load.capacity_model", description=main.__doc__)
    parser.add_argument("--nodes", type=int, help="nodes, instead of three sizes")
    parser.add_argument("--models", type=int, default=100, help="models that are served")
    parser.add_argument("--predictions", type=float, default=1_000.0, help="predictions a second")
    parser.add_argument("--keyed", type=float, default=0.5, help="share of them that read features by key")
    parser.add_argument("--labels", type=float, default=0.1, help="labels for a prediction")
    parser.add_argument("--redis-shards", type=int, default=1)
    parser.add_argument("--drainers", type=int, default=1, help="workspaces, each drained by itself")
    parser.add_argument("--drain-every", type=float, default=10.0, metavar="S")
    parser.add_argument(
        "--poll", type=float, default=0.25, metavar="S", help="0: replicas are woken by Redis"
    )
    parser.add_argument(
        "--as-written", action="store_true", help="the costs in the code instead of measured ones"
    )
    given = parser.parse_args()
    costs = Costs() if given.as_written else measured()
    one = ((given.nodes, given.models, given.predictions),) if given.nodes else _SIZES
    for nodes, models, predictions_s in one:
        show(
            Demand(models, predictions_s, given.keyed, labels_s=predictions_s * given.labels),
            Cluster(
                nodes,
                redis_shards=given.redis_shards,
                drainers=given.drainers,
                drain_every_s=given.drain_every,
                poll_s=given.poll,
            ),
            costs,
        )


def measured() -> Costs:
    """Measure the costs on this machine, and print how far the model is from a drain that it has not seen."""
    with folders() as store_of:
        row_s, commit_s = drain_costs(store_of)
        seen = drain_seconds(store_of("check"), rows=6_000, models=12)
    with TemporaryDirectory() as folder, redis_server(Path(folder)) as url:
        command_s, byte_s = redis_costs(url)
    told = 6_000 * row_s + 12 * commit_s
    print(f"a row {row_s * 1e6:.1f} µs, a commit {commit_s * 1e3:.1f} ms")
    print(f"Redis: a command {command_s * 1e6:.1f} µs, a byte {byte_s * 1e9:.2f} ns")
    print(f"a drain of 6,000 rows of 12 models: {seen:.2f} s, told {told:.2f} s ({told / seen:.2f})")
    return replace(
        Costs(),
        row_s=row_s,
        commit_s=commit_s,
        redis_command_s=command_s,
        redis_byte_s=byte_s,
        record_bytes=record_bytes(),
    )


def show(demand: Demand, cluster: Cluster, costs: Costs) -> None:
    """Print the parts of a cluster, the one that breaks first at the top."""
    print(
        f"\n{cluster.nodes} nodes of {cluster.cores} cores, {demand.models:,} models, {demand.predictions_s:,.0f} "
        f"predictions/s: {replicas_of(demand, cluster, costs):,} replicas, {nodes_needed(demand, cluster, costs)} nodes needed, "
        f"S3 requests ${s3_price_a_month(demand, cluster, costs):,.0f} a month"
    )
    for part in parts(demand, cluster, costs):
        print(
            f"  {part.name:<20}{part.utilisation:>9.2f}  {part.verdict:<7}{part.load:>12,.1f} of {part.capacity:,.0f} {part.unit}"
            f"{'; ' + part.remedy if part.verdict else ''}"
        )


if __name__ == "__main__":
    main()
