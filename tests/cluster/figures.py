"""What a scenario measures: rows in the log's tables, requests and processor time, and the report of all figures."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from tests.cluster import roles
from tests.cluster.cluster import PREFIX, Cluster
from tests.cluster.load import Outcome
from tests.cluster.project import FIRED, MODEL
from toque.functions.runtime.durable.ledger import invocation_id
from toque.registry.times import from_text

_FALLBACKS = re.compile(
    r'^haproxy_server_sessions_total\{.*server="SERVE_PROXY_ACTOR-fallback-.*\} (\S+)$', re.MULTILINE
)
_INDIRECT = re.compile(r"^toque_predictor_indirect_requests_total\{.*\} (\S+)", re.MULTILINE)
_REQUESTS = re.compile(r'SeaweedFS_s3_request_total\{.*type="([^"]*)".*\} (\S+)$')


@dataclass(frozen=True)
class Logged:
    """Which predictions and which labels are in the tables, and which predictions are joined with their label."""

    predicted: frozenset[str]
    labelled: frozenset[str]
    joined: frozenset[str]


def settled(
    cluster: Cluster, outcomes: Sequence[Outcome], *, within_s: float = 90, quiet_s: float = 25
) -> Logged:
    """What of a load is in the tables, once all is there, or nothing has come for a while.

    quiet_s: longer than the time between two drains.
    """
    wanted = {each.name for each in outcomes if each.kind == "predict" and not each.failed}
    labels = {each.name for each in outcomes if each.labelled}
    begun = changed = time.monotonic()
    found = logged(cluster, outcomes)
    while not (wanted <= found.predicted and labels <= found.labelled and labels <= found.joined):
        if time.monotonic() - changed > quiet_s or time.monotonic() - begun > within_s:
            break
        time.sleep(2)
        before, found = found, logged(cluster, outcomes)
        changed = changed if before == found else time.monotonic()
    return found


def runs_of_ticks(cluster: Cluster, since: float) -> Counter[str]:
    """How often each tick of the project's schedule ran, of those after a time in epoch seconds."""
    with cluster.lab.network():
        pages = roles.s3_client(cluster.lab).get_paginator("list_objects_v2")
        keys = [
            item["Key"]
            for page in pages.paginate(Bucket=roles.BUCKET, Prefix=f"{PREFIX}/{FIRED}/")
            for item in page.get("Contents", [])
        ]
    ticks = Counter(key.split("/")[-2] for key in keys)
    return Counter({tick: n for tick, n in ticks.items() if datetime.fromisoformat(tick).timestamp() > since})


@dataclass(frozen=True)
class RunTimes:
    """When a durable run was submitted, sent to the worker that claimed it, and begun there, in epoch seconds."""

    submitted: float
    sent: float
    begun: float


def journal_of_run(cluster: Cluster, key: str) -> list[dict[str, Any]]:
    """Read the entries of a durable run of `echo` with a key; none if it was never submitted."""
    folder = f"{PREFIX}/invocations/{invocation_id('echo', key)}/entries/"
    with cluster.lab.network():
        client = roles.s3_client(cluster.lab)
        keys = client.list_objects_v2(Bucket=roles.BUCKET, Prefix=folder).get("Contents", [])
        bodies = [client.get_object(Bucket=roles.BUCKET, Key=each["Key"])["Body"] for each in keys]
        return [json.loads(each.read()) for each in bodies]


def run_times(cluster: Cluster, key: str) -> RunTimes:
    """Read from its journal when the durable run with a key went where it ran."""
    entries = journal_of_run(cluster, key)
    started = next(each for each in entries[::-1] if each["body"]["kind"] == "started")
    times = (entries[0]["at"], started["body"]["sent"], started["at"])
    return RunTimes(*(from_text(each).timestamp() for each in times))


def store_requests(cluster: Cluster) -> float:
    """How many requests the S3 server has answered since it started."""
    return sum(store_requests_by_kind(cluster).values())


def store_requests_by_kind(cluster: Cluster) -> Counter[str]:
    """How many requests of each kind the S3 server has answered since it started."""
    url = f"http://{cluster.lab.address('s3')}:{roles.S3_METRICS_PORT}/metrics"
    with cluster.lab.network():
        lines = httpx.get(url).text.splitlines()
    kinds = Counter[str]()
    for line in lines:
        if counted := _REQUESTS.match(line):
            kinds[counted[1]] += int(float(counted[2]))
    return kinds


def processor_share(cluster: Cluster, seconds: float) -> dict[str, float]:
    """Share of a processor core that the processes of each node take during some seconds, but for those that end."""
    nodes = ["head", *cluster.workers]
    begun, before = time.monotonic(), {name: cluster.lab.processor_seconds(name) for name in nodes}
    time.sleep(seconds)
    after = {name: cluster.lab.processor_seconds(name) for name in nodes}
    passed = time.monotonic() - begun
    return {
        name: sum(used - before[name].get(process, 0.0) for process, used in after[name].items()) / passed
        for name in nodes
    }


def indirect_predictions(cluster: Cluster) -> int:
    """How many predictions came by way of Serve's Python proxy, by the count of the replicas, those that ended included."""
    said = cluster.ask("GET", cluster.workers[0], "/metrics", timeout=60).raise_for_status().text
    return sum(int(float(count)) for count in _INDIRECT.findall(said))


def python_proxy_requests(cluster: Cluster, node: str) -> int:
    """How many requests a node's HAProxy handed to Serve's Python proxy since it was last loaded anew."""
    said = cluster.lab.run(node, "curl", "-sf", "http://127.0.0.1:9101/metrics")
    counts = _FALLBACKS.findall(said)
    assert counts, "HAProxy no longer counts what it hands to the Python proxy"
    return sum(int(float(sessions)) for sessions in counts)


def write_report(file: Path, name: str, figures: dict[str, Any]) -> None:
    """Add the figures of a scenario to a JSON file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | {name: figures}, indent=1, sort_keys=True) + "\n")


def logged(cluster: Cluster, outcomes: Sequence[Outcome], prefix: str = PREFIX) -> Logged:
    """What of a load is in the tables of the store at a prefix of the bucket."""
    begin, end = outcomes[0].at - 60, outcomes[-1].at + 60
    said = json.loads(
        cluster.lab.run(
            "client",
            "python",
            "-m",
            "tests.cluster.logged",
            MODEL,
            str(begin),
            str(end),
            TOQUE_PROFILE=cluster.client_profile(prefix),
        )
    )
    return Logged(**{name: frozenset(said[name]) for name in ("predicted", "labelled", "joined")})
