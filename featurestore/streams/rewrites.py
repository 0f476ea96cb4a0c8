"""Count of the times that the stored events of a stream were rewritten: consumers that hold events from before begin anew.

An erasure takes events out of the table, and a replay puts others in their place. What a consumer holds in memory is older then, and
must not come online any more. So it reads the count before each of its writes.
"""

from __future__ import annotations

from toque.featurestore.online.redis_store import OnlineStore


def rewrites_of(online: OnlineStore, source: str) -> int:
    """Read how often the events of a stream were rewritten. Raises: OnlineStoreUnavailable."""
    with online.reachable():
        return int(online.client.get(_key(online, source)) or 0)


def announce_rewrite(online: OnlineStore, source: str) -> None:
    """Have the consumers of a stream begin anew: what they write from now on is from the events that are stored now.

    Raises: OnlineStoreUnavailable.
    """
    with online.reachable():
        online.client.incr(_key(online, source))


def _key(online: OnlineStore, source: str) -> str:
    return f"toque:rewrites:{online.project}:{source}"
