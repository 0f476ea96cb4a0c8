"""Erasure from Redis: the prediction stream with its write-ahead files, online features, and Redis's own files."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from redis.exceptions import ResponseError

from toque.clusters.redis_clients import open_redis, primaries
from toque.featurestore import FeatureStore, FeatureView
from toque.featurestore.online.keys import prefix
from toque.featurestore.streams.rewrites import announce_rewrite
from toque.functions.maintenance.erasure.subject import Traces
from toque.functions.prediction_log import drain
from toque.functions.prediction_log.writing.adoption import KINDS
from toque.functions.prediction_log.writing.stream import Stream
from toque.registry import ObjectStore

_REWRITE_S = 300.0


def clear_log(
    store: ObjectStore, redis_url: str, *, workspace: str, wal_root: Path, timeout_s: float
) -> list[str]:
    """Drain all that was logged by now into a workspace's tables, and have every writer drop it from its files.

    Returns: the writers that did not confirm it in `timeout_s`, as those of another machine that is away.
    """
    client = open_redis(redis_url, timeout_s=30.0)
    try:
        streams = [Stream(client, kind, workspace=workspace) for kind in KINDS]
        requests = [stream.request_rotation() for stream in streams]
        deadline = time.monotonic() + timeout_s
        while True:
            drain(store, redis_url, workspace=workspace, wal_root=wal_root)
            silent = [
                f"{stream.kind}/{writer}"
                for stream, number in zip(streams, requests, strict=True)
                for writer in stream.not_rotated(number)
            ]
            if not silent or time.monotonic() > deadline:
                return silent
            time.sleep(0.1)
    finally:
        client.close()


def erase_online(features: FeatureStore, traces: Traces) -> int:
    """Delete the online rows of the subject's entities in every view that has its join keys; returns their number."""
    client = features.online.client
    deleted = 0
    with features.online.reachable():
        for view in features.list_generations():
            for key in _keys_of(client, features.project, view, traces):
                deleted += int(client.delete(key))
    return deleted


def forget_streams(features: FeatureStore, tables: Iterable[str]) -> None:
    """Have the consumers of streams whose tables lost rows forget the events that they hold. tables: their names."""
    lost = set(tables)
    for source in features.list_stream_sources():
        if features.stream_table(source).table.name in lost:
            announce_rewrite(features.online, source)


def _keys_of(client: Any, project: str, view: FeatureView, traces: Traces) -> Iterator[bytes]:
    """Yield the keys of a view's rows that are the subject's or, where texts count, mention one of its long values."""
    names = [key.name for key in view.join_keys]
    is_named = bool(traces.values) and traces.values.keys() <= set(names)
    if not (is_named or traces.text):
        return
    start = prefix(project, view.stored_as)
    for key in client.scan_iter(match=f"{_literal(start)}*", count=1_000):
        parts = [unquote(part) for part in key.decode()[len(start) :].split("|")]
        row = dict(zip(names, parts, strict=False))
        if (is_named and all(row.get(name) in accepted for name, accepted in traces.values.items())) or (
            traces.text and traces.mentions((client.get(key) or b"").decode("utf-8", "replace"))
        ):
            yield key


def _literal(text: str) -> str:
    """Escape what SCAN's patterns give a meaning."""
    return "".join(f"\\{each}" if each in "*?[]\\" else each for each in text)


def rewrite_files(redis_url: str) -> str:
    """Have Redis, each primary of a Cluster, write its files anew, without what was deleted; returns why it could not, or an empty text.

    Raises: redis.RedisError if it does not answer.
    """
    client = open_redis(redis_url, timeout_s=30.0)
    try:
        for server in primaries(client):
            _rewrite(server)
    except ResponseError as error:
        return f"Redis refused to write its files anew ({error}); see its provider for when they are replaced"
    except TimeoutError:
        return f"Redis did not finish writing its files anew in {_REWRITE_S:g} s; run BGREWRITEAOF and BGSAVE"
    else:
        return ""
    finally:
        client.close()


def _rewrite(server: Any) -> None:
    """Have one server write its files anew. Raises: TimeoutError, ResponseError."""
    if server.info("persistence").get("aof_enabled"):
        server.bgrewriteaof()
        _wait(server, "aof_rewrite_in_progress", "aof_rewrite_scheduled")
    if server.config_get("save").get("save"):
        server.bgsave(schedule=True)
        _wait(server, "rdb_bgsave_in_progress")


def _wait(server: Any, *flags: str) -> None:
    """Wait until none of these flags is set. Raises: TimeoutError."""
    deadline = time.monotonic() + _REWRITE_S
    while any(int(server.info("persistence").get(flag, 0)) for flag in flags):
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)
