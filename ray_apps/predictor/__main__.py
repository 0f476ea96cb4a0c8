"""Serve models of a store on this machine, without the rest of the platform: to try one out, or to measure it.

python -m toque.ray_apps.predictor --port 8000 [--grpc-port 8001] MODEL…    (the store and Redis are those of the environment)

It starts a Ray of its own with Serve behind HAProxy, prints `ready` when all models answer, and ends everything
it started on SIGINT or SIGTERM. SIGHUP deploys all models again, with the code that is on disk then, and prints
`deployed`. With --standalone it serves them from this process alone, without Ray.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toque.ray_apps.serve.settings import loopback_environment

if TYPE_CHECKING:
    from toque.ray_apps.predictor.deploy.options import PoolOptions, PredictorOptions
    from toque.ray_apps.predictor.http.endpoint import Endpoint

SERVE_ENVIRONMENT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "toque.ray_apps.predictor.http.bypass.middlewares",
    "RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH": "toque.ray_apps.serve.haproxy_supervisor.install",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",  # by default an HAProxy that is not there in 5 s, as on a busy machine, is killed
    "RAY_worker_niceness": "0",  # Ray's default of 15 lets any other program starve the replicas
}
"""Serve's settings for speed; they count only in processes that start with them."""
SHORT = 16
"""Longest path of a temporary folder, in characters, that leaves room for the paths of Ray's and HAProxy's sockets."""
PORTS = range(20_000, 32_768)
"""Above the ports of Ray's workers, below those that Linux picks for outgoing connections."""


def main() -> None:
    """Serve what the arguments ask for until a signal ends it."""
    arguments = _arguments()
    if arguments.standalone:
        _serve_standalone(arguments)
        return
    stop = threading.Event()
    with _haproxy_folder(), _cluster(arguments.num_cpus):
        for number in (signal.SIGINT, signal.SIGTERM):  # instead of Ray's handlers, which end at once
            signal.signal(number, lambda *_: stop.set())
        again = threading.Event()
        signal.signal(signal.SIGHUP, lambda *_: again.set())
        _deploy(arguments)
        _print("ready")
        while not stop.wait(0.2):
            if again.is_set():
                again.clear()
                _deploy_models(arguments)
                _print("deployed")


def _arguments() -> argparse.Namespace:
    """The parsed and checked command line."""
    parser = argparse.ArgumentParser(prog="python -m toque.ray_apps.predictor", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="each in replicas of its own")
    parser.add_argument(
        "--workspace", help="whose models; by default that of TOQUE_WORKSPACE, or else `default`"
    )
    parser.add_argument("--pool", action="store_true", help="all other models of the workspace in a pool")
    parser.add_argument(
        "--pool-bytes", type=int, default=1 << 30, help="memory limit of a replica of the pool"
    )
    parser.add_argument("--pool-replicas", type=int, default=2)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--grpc-port", type=int, help="answer by gRPC too, at this port")
    parser.add_argument("--standalone", action="store_true", help="serve in this process, without Ray")
    parser.add_argument("--bare", action="store_true", dest="standalone", help=argparse.SUPPRESS)  # old name
    _add_scaling(parser)
    parser.add_argument("--num-cpus", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-authentication", action="store_true", help="let everybody in; for measurements")
    parser.add_argument("--no-log", action="store_true", help="log no predictions")
    parser.add_argument("--no-metrics", action="store_true", help="count no requests for Prometheus")
    arguments = parser.parse_args()
    if not arguments.models and not arguments.pool and not arguments.dedicated:
        parser.error("name at least one MODEL, or give --pool")
    if arguments.target_latency_ms is not None and arguments.max_replicas is None:
        parser.error("--target-latency-ms needs --max-replicas")
    if arguments.standalone and arguments.dedicated:
        parser.error("--dedicated needs Ray; leave out --standalone")
    return arguments


def _add_scaling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--replicas", type=int, default=1, help="of each model")
    parser.add_argument(
        "--max-replicas", type=int, help="scale each model up to so many replicas, by its requests in flight"
    )
    parser.add_argument(
        "--min-replicas", type=int, default=1, help="with --max-replicas; 0 stops the last one when idle"
    )
    parser.add_argument(
        "--target-latency-ms",
        type=float,
        help="with --max-replicas: scale up, too, until 95 %% of the answers take less than this",
    )
    parser.add_argument(
        "--idle-s", type=float, default=300.0, help="time without requests after which the last replica stops"
    )
    parser.add_argument(
        "--dedicated",
        action="append",
        default=[],
        metavar="MODEL",
        help="serve this model too, each of its versions in --min-replicas to --max-replicas of its own",
    )
    parser.add_argument(
        "--linger-s", type=float, default=60.0, help="how long an unused version's deployment stays"
    )


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _serve_standalone(arguments: argparse.Namespace) -> None:
    import torch  # late, as the rest: with Ray, Serve's settings must be in the environment first
    import uvloop

    from toque.ray_apps.predictor.deploy.deployment import build_pool, build_predictor
    from toque.ray_apps.predictor.deploy.standalone import serve_standalone

    torch.set_num_threads(1)  # as a replica of less than two CPUs
    sys.setswitchinterval(0.001)
    options = _model_options(arguments)
    models = {model: build_predictor(model, options) for model in arguments.models}
    endpoints: dict[str, Endpoint] = {**models}
    authenticators = [endpoint.auth for endpoint in models.values()]
    if arguments.pool:
        pool = endpoints[""] = build_pool(_pool_options(arguments))
        authenticators.append(pool.auth)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn ends by it, and then raises it once more
    ready = partial(_print, "ready")
    uvloop.run(
        serve_standalone(
            endpoints,
            authenticators[0],
            workspace=options.workspace,
            port=arguments.port,
            grpc_port=arguments.grpc_port,
            ready=ready,
        )
    )


def _common(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that a model's replicas and the pool's have alike."""
    workspace = {} if arguments.workspace is None else {"workspace": arguments.workspace}
    return {
        "authentication": not arguments.no_authentication,
        "log": not arguments.no_log,
        "metrics": not arguments.no_metrics,
        **workspace,
    }


def _options(arguments: argparse.Namespace, **scale: Any) -> PredictorOptions:
    from toque.ray_apps.predictor.deploy.options import PredictorOptions  # late, as above

    return PredictorOptions.from_environment(
        os.environ,
        **_common(arguments),
        num_replicas=arguments.replicas,
        idle_s=arguments.idle_s,
        **scale,
    )


def _model_options(arguments: argparse.Namespace) -> PredictorOptions:
    return _options(
        arguments,
        min_replicas=arguments.min_replicas,
        max_replicas=arguments.max_replicas,
        target_latency_ms=arguments.target_latency_ms,
    )


def _dedicated_options(arguments: argparse.Namespace) -> PredictorOptions:
    most = arguments.max_replicas or max(1, arguments.min_replicas)
    own = {
        "min_replicas": arguments.min_replicas,
        "max_replicas": most,
        "target_latency_ms": arguments.target_latency_ms,
        "linger_s": arguments.linger_s,
    }
    return _options(arguments, dedicated={**own, "num_cpus": 0})


def _pool_options(arguments: argparse.Namespace) -> PoolOptions:
    from toque.ray_apps.predictor.deploy.options import PoolOptions  # late, as above

    return PoolOptions.from_environment(
        os.environ,
        **_common(arguments),
        memory_limit_bytes=arguments.pool_bytes,
        num_replicas=arguments.pool_replicas,
    )


@contextlib.contextmanager
def _haproxy_folder() -> Iterator[None]:
    """Make a private folder for Ray's and HAProxy's files; afterwards end the HAProxy that was started with them."""
    short = None if len(tempfile.gettempdir()) <= SHORT else "/tmp"  # noqa: S108  # mkdtemp makes a name nobody has
    folder = Path(tempfile.mkdtemp(prefix="toque-", dir=short))
    metrics_port, stats_port = _free_ports(2)
    os.environ.update(
        SERVE_ENVIRONMENT
        | loopback_environment()
        | {
            "RAY_TMPDIR": str(folder),  # by default Ray takes /tmp/ray, which anybody can make first
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        }
    )
    try:
        yield
    finally:
        _end_haproxy(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    """Ports that are free now, outside the range from which the kernel picks ports of connections."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            probe = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("", random.choice(PORTS)))
                found.append(probe.getsockname()[1])
    return found


def _end_haproxy(folder: Path) -> None:
    """End the processes that run on this folder's configuration: `ray stop` leaves them."""
    needle = str(folder / "haproxy.cfg").encode()
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and needle in (process / "cmdline").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGTERM)


@contextlib.contextmanager
def _cluster(num_cpus: int) -> Iterator[None]:
    """Run a local Ray cluster with Serve, and end it afterwards."""
    import ray  # late: Serve's settings must be in the environment first
    from ray import serve

    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 << 20,
        runtime_env={
            "env_vars": {
                **SERVE_ENVIRONMENT,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            }
        },
    )
    try:
        yield
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def _deploy_models(arguments: argparse.Namespace) -> None:
    from toque.ray_apps.predictor.deploy.deployment import deploy_model, deploy_pool  # late, as above

    for model in arguments.models:
        deploy_model(model, _model_options(arguments))
    for model in arguments.dedicated:
        deploy_model(model, _dedicated_options(arguments))
    if arguments.pool:
        deploy_pool(_pool_options(arguments))


def _deploy(arguments: argparse.Namespace) -> None:
    from ray import serve  # late, as above
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    from toque.ray_apps.predictor.grpc import GRPC_APP, ProxyOptions, grpc_application

    serve.start(
        http_options=HTTPOptions(host="127.0.0.1", port=arguments.port),
        logging_config=LoggingConfig(enable_access_log=False),
    )
    _deploy_models(arguments)
    if arguments.grpc_port is not None:
        options = ProxyOptions.from_environment(
            os.environ,
            url=f"http://127.0.0.1:{arguments.port}",
            port=arguments.grpc_port,
            authentication=not arguments.no_authentication,
        )
        serve.run(grpc_application(options), name=GRPC_APP, route_prefix=None)


if __name__ == "__main__":
    main()
