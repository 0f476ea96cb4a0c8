"""Processes killed during materialize, an incremental run or push: a rerun ends as an undisturbed run."""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from tests.featurestore.killed_process import MINUTE, NOW, PLANES, START, WORK, row, view
from toque.featurestore import FeatureStore
from toque.registry import open_store

SCRIPT = Path(__file__).with_name("killed_process.py")
Begin = Callable[[], tuple[FeatureStore, list[str]]]
MIDDLE = {"window": 8, "incremental": 7, "push": 2}  # messages to Redis, of nearly twice as many


@pytest.fixture
def begin(redis_url: str, tmp_path: Path) -> Iterator[Begin]:
    """Make stores of five days, the first three online, with late rows and corrections since, also with equal times."""
    begun: list[FeatureStore] = []

    def make() -> tuple[FeatureStore, list[str]]:
        urls = [f"file://{tmp_path}/{len(begun)}", redis_url]
        fs = FeatureStore(open_store(urls[0]), redis_url, clock=lambda: NOW)
        begun.append(fs)
        fs.online.client.flushall()
        fs.apply([view])
        fs.write_offline(view, [row(PLANES[n % 6], 360 * n, 360 * n, float(n)) for n in range(20)])
        fs.materialize_incremental(START + 3 * 1440 * MINUTE)
        late = [row(PLANES[n % 6], 360 * n, 360 * n + 99, -float(n)) for n in range(0, 20, 3)]
        fs.write_offline(view, [*late, row("N5", 360 * 17, 360 * 17, 17.0, "b"), row("N1", 9, 7000, 0.5)])
        return fs, urls

    yield make
    for fs in begun:
        fs.online.close()


def online(fs: FeatureStore) -> dict[bytes, bytes | None]:
    """Read all of Redis: rows, claims and the progress of runs."""
    client = fs.online.client
    return {key: client.dump(key) for key in sorted(client.scan_iter("toque*"))}


def killed(urls: list[str], work: str, messages: int) -> bool:
    """Run the work in a process that dies after so many Redis messages; returns whether it was killed."""
    command = [sys.executable, str(SCRIPT), *urls, work, str(messages)]
    ended = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(SCRIPT.parents[2])}, check=False)
    assert ended.returncode in {0, -signal.SIGKILL}
    return ended.returncode != 0


def check(fs: FeatureStore, work: str, expected: dict[bytes, bytes | None]) -> None:
    """Check that a rerun gives the expected state, and online equals offline as of now."""
    WORK[work](fs)
    assert online(fs) == expected
    fs.materialize_incremental()
    asked = [{"plane": plane} for plane in PLANES]
    entities = pa.Table.from_pylist([each | {"event_timestamp": NOW} for each in asked])
    offline = fs.get_historical_features(entities, features=view).to_arrow().select(view.features)
    assert fs.get_online_features(view, asked).columns() == offline.to_pydict()
    assert fs.materialize_incremental()[0].rows == 0


def undisturbed(begin: Begin, work: str) -> dict[bytes, bytes | None]:
    fs, _ = begin()
    WORK[work](fs)
    return online(fs)


@pytest.mark.parametrize("work", MIDDLE)
def test_killed_in_the_middle_it_ends_as_undisturbed(begin: Begin, work: str) -> None:
    expected = undisturbed(begin, work)
    fs, urls = begin()
    before = online(fs)
    assert killed(urls, work, MIDDLE[work])
    assert before != online(fs) != expected
    check(fs, work, expected)


@pytest.mark.proof
@pytest.mark.parametrize("work", MIDDLE)
def test_killed_before_every_message_to_redis_it_ends_as_undisturbed(begin: Begin, work: str) -> None:
    expected = undisturbed(begin, work)
    for messages in itertools.count():
        fs, urls = begin()
        if not killed(urls, work, messages):
            break
        check(fs, work, expected)
    assert online(fs) == expected
    assert messages > MIDDLE[work]
