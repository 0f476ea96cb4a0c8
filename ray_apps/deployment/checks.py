"""Checks a cluster before it is deployed to: nodes alike, clocks, store and Redis reached from each node."""

from __future__ import annotations

import os
import platform
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from toque.clusters.profile import apply_profile, missing_settings, settings_of
from toque.clusters.redis_clients import open_redis, redis_url_of
from toque.ray_apps.config.applications import release_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from toque.registry import ObjectStore


SKEW_S = 2.0
"""How far two clocks of a cluster may be apart: leases and point-in-time reads count on it."""
_PROBE_S = 60.0
_REDIS_WAIT_S = 10.0
KEY = "probes/deploy"


class Check(BaseModel):
    """One check: what was looked at, whether all is well, and what was found or what to do."""

    model_config = ConfigDict(frozen=True)

    check: str
    ok: bool
    found: str


def check_cluster(store: ObjectStore, *, doors: tuple[int, ...]) -> list[Check]:
    """Check every living node, and the store. doors: ports that a node needs free; () once Serve runs."""
    marker = secrets.token_hex(8)
    store.put(KEY, marker.encode())
    try:
        begun = time.time()
        reports, silent = probe_nodes(doors)
        took_s = time.time() - begun
    finally:
        store.delete(KEY)
    found = judged(reports, silent, marker=marker, begun=begun, took_s=took_s)
    return [*found, check_promises(store)]


def judged(
    reports: Sequence[NodeReport], silent: Sequence[str], *, marker: str, begun: float, took_s: float
) -> list[Check]:
    """Judge what the nodes report. silent: those that did not; marker: what the store has under the probe's key.

    begun, took_s: when the probes were sent, by this process's clock, and how long until all had answered.
    """
    return [
        _answers(reports, silent),
        *_alike(reports),
        *_reached(reports, marker),
        _clocks(reports, begun, took_s),
    ]


def check_promises(store: ObjectStore) -> Check:
    """Try what the platform relies on: conditional writes, reads after writes, tables, the store's clock."""
    from toque.registry import RegistryError  # late: the command line does without boto3 and Arrow
    from toque.registry.store import check_store

    try:
        skew_s = check_store(store)
    except RegistryError as error:
        return Check(check="store's promises", ok=False, found=str(error))
    return Check(check="store's promises", ok=True, found=f"kept; its clock is {skew_s:+.0f} s from ours")


def probe_nodes(doors: tuple[int, ...] = ()) -> tuple[list[NodeReport], list[str]]:
    """Probe every living node of the connected cluster; returns the reports, and the nodes that did not answer."""
    import ray  # late: the command line is made before Ray may be imported
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task: Any = ray.remote(num_cpus=0, max_retries=0)(probe)
    asked = {}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if not node["Alive"]:
            continue
        name = f"{node['NodeManagerAddress']} ({node['Labels'].get('ray.io/node-group') or 'node'})"
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ports = doors if "door" in node["Resources"] else ()
        asked[task.options(scheduling_strategy=there).remote(name, ports)] = name
    reports, silent = [], []
    deadline = time.monotonic() + _PROBE_S
    for ref, name in asked.items():
        try:
            reports.append(ray.get(ref, timeout=max(0.1, deadline - time.monotonic())))
        except Exception as error:  # noqa: BLE001  # whichever way it fails, the node does not answer
            silent.append(f"{name}: {str(error).splitlines()[-1] if str(error) else type(error).__name__}")
    return reports, silent


def _answers(reports: Sequence[NodeReport], silent: Sequence[str]) -> Check:
    found = "; ".join(silent) if silent else f"{len(reports)} answer"
    return Check(check="nodes", ok=bool(reports) and not silent, found=found)


def _alike(reports: Sequence[NodeReport]) -> list[Check]:
    checks = []
    for name, field in (("Python", "python"), ("Ray", "ray"), ("code and settings", "release")):
        values = {each.node: str(getattr(each, field)) for each in reports}
        common = Counter(values.values()).most_common(1)[0][0] if values else ""
        others = [f"{node} has {value}" for node, value in values.items() if value != common]
        found = f"{', '.join(others)}; the others {common}" if others else common
        checks.append(Check(check=name, ok=not others, found=found))
    return checks


def _reached(reports: Sequence[NodeReport], marker: str) -> list[Check]:
    settings = [f"{each.node} lacks {', '.join(each.missing)}" for each in reports if each.missing]
    store = [
        f"{each.node}: {each.store or 'sees another store than this process'}"
        for each in reports
        if each.seen != marker
    ]
    redis = [f"{each.node}: {each.redis}" for each in reports if each.redis]
    ports = [
        f"{each.node}: {', '.join(map(str, each.busy_ports))} taken" for each in reports if each.busy_ports
    ]
    return [
        _all_well("settings", settings, "every node has its profile"),
        _all_well("store", store, "the same from every node"),
        _all_well("Redis", redis, "answers every node"),
        _all_well("ports", ports, "free, or the platform's"),
    ]


def _clocks(reports: Iterable[NodeReport], begun: float, took_s: float) -> Check:
    """Compare the nodes' clocks with this process's, which saw each reading happen within `took_s`."""
    off = [
        f"{each.node}: {each.clock_s - begun:+.1f} s"
        for each in reports
        if not begun - SKEW_S <= each.clock_s <= begun + took_s + SKEW_S
    ]
    return _all_well("clocks", off, f"within {SKEW_S:g} s; keep an NTP client running")


def _all_well(check: str, wrong: Sequence[str], well: str) -> Check:
    return Check(check=check, ok=not wrong, found="; ".join(wrong) if wrong else well)


class NodeReport(BaseModel):
    """What a node says of itself.

    python, ray: versions; release: digest of its code and settings; missing: settings it lacks; store, redis: why it
    does not reach them, "" if it does; seen: what the store has under the probe's key; clock_s: seconds since the epoch;
    busy_ports: ports of the doors that another program has.
    """

    model_config = ConfigDict(frozen=True)

    node: str
    python: str
    ray: str
    release: str
    missing: tuple[str, ...]
    store: str
    redis: str
    seen: str
    clock_s: float
    busy_ports: tuple[int, ...] = ()


def probe(node: str, ports: tuple[int, ...]) -> NodeReport:
    """Look at the node that this process runs on. ports: which no other program may have."""
    import ray  # late: this module is read by the command line, too

    environment = dict(os.environ)
    apply_profile(environment)
    missing = tuple(each.variable.name for each in missing_settings(environment))
    seen: list[str] = [""]

    def store() -> None:
        seen[0] = _store(environment).get(KEY).decode()

    return NodeReport(
        node=node,
        python=platform.python_version(),
        ray=ray.__version__,
        release=release_of(settings_of(environment)),
        missing=missing,
        store=_why_not(store) if "TOQUE_STORE" not in missing else "no store is set",
        redis=_why_not(lambda: _redis(environment))
        if "TOQUE_REDIS_URL" not in missing
        else "no Redis is set",
        seen=seen[0],
        clock_s=time.time(),
        busy_ports=tuple(port for port in ports if _taken(port)),
    )


def _store(environment: dict[str, str]) -> Any:
    from toque.functions.runtime.context import context_of  # late: as above

    return context_of(environment).store


def _redis(environment: dict[str, str]) -> None:
    url = redis_url_of(environment) or ""  # the caller looked: it is set
    open_redis(url, connect_timeout_s=_REDIS_WAIT_S, timeout_s=_REDIS_WAIT_S, patience_s=_REDIS_WAIT_S).ping()


def _why_not(reach: Callable[[], object]) -> str:
    try:
        reach()
    except Exception as error:  # noqa: BLE001  # any reason is the answer
        return f"{type(error).__name__}: {error}"
    return ""


def _taken(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("0.0.0.0", port))  # noqa: S104  # as the doors do
        except OSError:
            return True
        return False
