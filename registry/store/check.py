"""Check of a store before a platform trusts it: conditional writes, reads after writes, order, tables and the clock.

The writes lie under `probes/` and in a table of that name, and are removed at the end.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from typing import Final

import pyarrow as pa

from toque.registry.errors import AlreadyExists, RegistryError
from toque.registry.store.object_store import ObjectStore, clock_skew_s
from toque.registry.store.tables.table import Table
from toque.registry.times import utc_now

MOST_SKEW_S: Final = 10.0
_WRITERS, _ROUNDS = 8, 12
_REMEDY = "use a server with atomic conditional writes, such as AWS S3, SeaweedFS or MinIO"


class UnfitStore(RegistryError):  # noqa: N818 - as the registry's errors
    """The store's server breaks a promise that the platform is built on; the message names it and the remedy."""


def check_store(
    store: ObjectStore, *, clock: Callable[[], datetime] = utc_now, most_skew_s: float = MOST_SKEW_S
) -> float:
    """Try what the platform relies on, some 150 requests; returns by how many seconds the store's clock is ahead of ours.

    A race is found with the probability that it occurs in 12 rounds of 8 writers. clock: of this machine.
    Raises: UnfitStore, naming the fault and the remedy; Forbidden, Unavailable and InvalidInput as the store does.
    """
    run = uuid.uuid4().hex
    prefix, table = f"probes/{run}", Table(store, f"probes/{run}")
    try:
        _check_create(store, f"{prefix}/create")
        for number in range(_ROUNDS):
            _check_race(store, f"{prefix}/race-{number}")
        _check_writes(store, f"{prefix}/written")
        _check_order(store, f"{prefix}/order/")
        _check_table(table)
        return _checked_skew_s(store, clock, most_skew_s)
    finally:
        with suppress(RegistryError):  # what went wrong first is what counts
            for key in [*store.list(f"{prefix}/"), *store.list(f"tables/{prefix}.delta/")]:
                store.delete(key)


def _check_create(store: ObjectStore, key: str) -> None:
    store.create(key, b"first")
    if store.find(key) != b"first":
        raise UnfitStore(f"{store.url}: {key} was created and a read did not find it; {_REMEDY}")
    try:
        store.create(key, b"second")
    except AlreadyExists:
        kept = store.find(key)
        if kept != b"first":
            raise UnfitStore(f"{store.url}: a refused create changed {key} to {kept!r}; {_REMEDY}") from None
        return
    raise UnfitStore(
        f"{store.url}: {key} was created a second time: the server ignores If-None-Match, so two writers of a journal "
        f"would both win; {_REMEDY}"
    )


def _check_race(store: ObjectStore, key: str) -> None:
    start = threading.Barrier(_WRITERS)

    def create(number: int) -> int | None:
        start.wait()
        try:
            store.create(key, str(number).encode())
        except AlreadyExists:
            return None
        return number

    with ThreadPoolExecutor(_WRITERS) as pool:
        winners = [number for number in pool.map(create, range(_WRITERS)) if number is not None]
    kept = store.find(key)
    # No winner is fair: the client's own retry may have met its first success.
    if len(winners) > 1 or (winners and kept != str(winners[0]).encode()):
        raise UnfitStore(
            f"{store.url}: {len(winners)} of {_WRITERS} simultaneous creates of {key} succeeded and {kept!r} is kept: the "
            f"server tests If-None-Match before it writes, not while; {_REMEDY}"
        )


def _check_writes(store: ObjectStore, key: str) -> None:
    for number in range(4):
        text = str(number).encode()
        store.put(key, text)
        if (found := store.find(key)) != text:
            raise UnfitStore(
                f"{store.url}: {key} was written as {text!r} and read as {found!r}: reads are older than writes; turn "
                "caches and eventual consistency off"
            )
    store.delete(key)
    if store.find(key) is not None or list(store.list(key)):
        raise UnfitStore(
            f"{store.url}: {key} was deleted and is still there; grant deletion, or end a lock on it"
        )


def _check_order(store: ObjectStore, prefix: str) -> None:
    keys = [f"{prefix}{number:04}" for number in (3, 10, 1, 2)]
    for key in keys:
        store.put(key, b"")
    whole, rest = list(store.list(prefix)), list(store.list(prefix, after=f"{prefix}0002"))
    if whole != sorted(keys) or rest != sorted(keys)[2:]:
        raise UnfitStore(
            f"{store.url}: listing {prefix} gave {whole}, and after 0002 {rest}: lists are late, out of order or ignore "
            "StartAfter; use a server that lists as S3 does"
        )


def _check_table(table: Table) -> None:
    """Write and read a Delta table, whose library has a client and credentials of its own."""
    try:
        table.append(pa.table({"x": [1]}))
        rows = table.append(pa.table({"x": [2]})).version and table.read().num_rows
    except OSError as error:
        raise UnfitStore(
            f"{table.store.url}: objects can be written and tables cannot ({error}); name region and endpoint in the url"
        ) from error
    if rows != 2:  # noqa: PLR2004  # one a commit
        raise UnfitStore(f"{table.store.url}: of a table's two rows {rows} were read; {_REMEDY}")


def _checked_skew_s(store: ObjectStore, clock: Callable[[], datetime], most_skew_s: float) -> float:
    """Compare the clock of the server with ours."""
    skew_s = -clock_skew_s(store, clock=lambda: clock().timestamp())
    if abs(skew_s) > most_skew_s:
        ahead = "ahead of" if skew_s > 0 else "behind"
        raise UnfitStore(
            f"{store.url}: the store's clock is {abs(skew_s):.0f} s {ahead} this machine's, more than {most_skew_s:g} s; "
            "set both by NTP"
        )
    return skew_s
