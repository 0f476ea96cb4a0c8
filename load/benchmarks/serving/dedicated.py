"""Benchmark of dedicated versions: the cost of a hop to another replica, for one-row requests.

Both models are the same small MLP behind one HAProxy, one replica each (of the second: one endpoint, and one replica of
its one version), measured in turns by `wrk`, with authentication and log.
"""

from __future__ import annotations

from toque.load.benchmarks.harness import main, temporary
from toque.load.benchmarks.servers import redis_server, until
from toque.load.benchmarks.serving.fixtures import BenchmarkModel, compare, need, predictor, register
from toque.load.benchmarks.serving.floor import small_mlp


def run(*, seconds: float = 4, rounds: int = 3, connections: tuple[int, ...] = (1, 16)) -> None:
    """Start the server, and measure both models in turns."""
    need("wrk")
    models = {name: BenchmarkModel(small_mlp()) for name in ("shared", "dedicated")}
    with temporary() as folder, redis_server(folder) as redis_url:
        store_url = f"file://{folder}/store"
        token = register(store_url, folder / "artifacts", models)
        options = ["--num-cpus", 4, "shared", "--dedicated", "dedicated"]
        with predictor(folder, store_url, token, *options, redis_url=redis_url, asked="shared") as ours:
            targets = [ours.target(name) for name in models]
            until(targets[1].answers, "the dedicated version does not answer")
            compare(targets, connections, seconds, rounds, folder)


if __name__ == "__main__":
    main(run, "torch", "ray")
