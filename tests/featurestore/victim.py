"""A process that materializes or pushes until it is killed: `victim.py STORE_URL REDIS_URL window|incremental|push`."""

import itertools
import sys
from datetime import UTC, datetime

from featurestore import FeatureStore
from featurestore.materialize import Materializer
from registry import open_store

NOW = datetime(2013, 7, 1, 12, tzinfo=UTC)


def main(store_url: str, redis_url: str, what: str) -> None:
    fs = FeatureStore(open_store(store_url), redis_url, clock=lambda: NOW)
    mover = Materializer(fs.offline, fs.online, rows_at_once=1_000)
    view = fs.get_feature_view("late")
    if what == "window":
        mover.window(view, start=None, end=NOW)
    elif what == "incremental":
        mover.incremental(view, end=NOW)
    else:
        for n in itertools.count():
            fs.push(view, [{"plane": f"N{n % 6}", "x": float(n), "s": "a", "event_timestamp": NOW}])


if __name__ == "__main__":
    main(*sys.argv[1:])
