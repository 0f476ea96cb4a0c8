"""The cache of shards: never above its bound, each shard fetched once, whole or not at all, whoever shares it or is killed."""

import fcntl
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from tests.functions.training_data.sets import samples
from toque.functions.training_data import OpenSet, ShardCache, write_samples
from toque.registry import Damaged, open_store


@pytest.fixture
def store(tmp_path):
    return open_store(f"file://{tmp_path}/store")


def some_set(store, *, form="arrow", rows=100, shards=10):
    made = samples(rows)
    ref = write_samples(store, "set", [made], form=form, shard_bytes=made.nbytes // shards)
    return OpenSet.of(store, ref).index


def open_all(cache, store, index, *, closing=True):
    opened = []
    for shard, first in zip(index.shards, index.starts, strict=False):
        one = cache.open(store, index.format, shard)
        found = one.shard.take(np.arange(one.shard.rows))["number"].tolist()
        assert found == list(range(first, first + shard.rows))
        opened.append(one)
        if closing:
            one.close()
    return opened


@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_shards_used_longest_ago_are_evicted_for_new_ones(store, tmp_path, form):
    index = some_set(store, form=form)
    largest = max(shard.open_bytes + shard.size_bytes for shard in index.shards)
    cache = ShardCache(tmp_path / "cache", most_bytes=4 * largest)
    open_all(cache, store, index)
    kept = {path.name.partition(".")[0] for path in cache.folder.glob(f"*.{form}")}
    newest = [shard.digest for shard in index.shards[-2:]]
    assert set(newest) <= kept
    assert index.shards[0].digest not in kept
    assert cache.size_bytes() <= cache.most_bytes


@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_shards_in_use_stay_and_others_are_held_in_memory(store, tmp_path, form):
    index = some_set(store, form=form)
    largest = max(shard.open_bytes + shard.size_bytes for shard in index.shards)
    cache = ShardCache(tmp_path / "cache", most_bytes=3 * largest)
    opened = open_all(cache, store, index, closing=False)
    assert cache.size_bytes() <= cache.most_bytes
    assert opened[-1].shard.take(np.array([0]))["number"].tolist() == [100 - index.shards[-1].rows]
    for each in opened:
        each.close()


def test_processes_share_shards_and_each_is_fetched_once(store, tmp_path, monkeypatch):
    index = some_set(store)
    fetched = []
    download = type(store).download
    monkeypatch.setattr(
        type(store), "download", lambda self, key, path: fetched.append(key) or download(self, key, path)
    )
    caches = [ShardCache(tmp_path / "cache") for _ in range(4)]
    threads = [threading.Thread(target=open_all, args=(cache, store, index)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(fetched) == sorted(shard.key for shard in index.shards)


def test_four_readers_of_a_small_cache_read_what_is_stored_and_keep_the_bound(store, tmp_path):
    index = some_set(store, rows=400, shards=20)
    largest = max(shard.open_bytes for shard in index.shards)
    watched, ended, failed = ShardCache(tmp_path / "cache", most_bytes=3 * largest), threading.Event(), []

    def read(seed):
        starts = index.starts
        for at in np.random.default_rng(seed).integers(0, len(index.shards), 60).tolist():
            try:
                one = ShardCache(watched.folder, most_bytes=watched.most_bytes).open(
                    store, "arrow", index.shards[at]
                )
                found = one.shard.take(np.arange(one.shard.rows))["number"].tolist()
                assert found == list(range(starts[at], starts[at + 1]))
                one.close()
            except BaseException as error:  # noqa: BLE001 - a thread's assertion is told below
                failed.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    most = 0
    while any(thread.is_alive() for thread in threads):
        most = max(most, watched.size_bytes())
        ended.wait(0.001)
    assert failed == []
    assert 0 < most <= watched.most_bytes


def test_what_a_killed_process_left_is_removed(store, tmp_path):
    index = some_set(store, shards=2)
    script = (
        "import os, signal, sys\n"
        "from toque.functions.training_data import OpenSet, ShardCache, SetRef, rows\n"
        "from pathlib import Path\n"
        "from toque.registry import open_store\n"
        "rows.unpack_shard = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "store = open_store(sys.argv[1])\n"
        "index = OpenSet.of(store, SetRef(name='set', version=1)).index\n"
        "ShardCache(Path(sys.argv[2])).open(store, 'arrow', index.shards[0])\n"
    )
    victim = subprocess.run(
        [sys.executable, "-c", script, store.url, str(tmp_path / "cache")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
        timeout=280,
    )
    assert victim.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "cache").glob("fetch-*/stored"))) == 1
    # The bytes that it had reserved are had again by another shard, and its own is fetched whole.
    bound = max(shard.open_bytes for shard in index.shards)
    for shard in (index.shards[1], index.shards[0]):
        cache = ShardCache(tmp_path / "cache", most_bytes=bound)
        cache.open(store, "arrow", shard).close()
        assert [path.name for path in cache.folder.glob("*.arrow")] == [f"{shard.digest}.arrow"]
    assert list((tmp_path / "cache").glob("fetch-*")) == []


def test_a_damaged_shard_is_refused_and_not_kept(store, tmp_path):
    index = some_set(store)
    cache = ShardCache(tmp_path / "cache")
    data = bytearray(store.get(index.shards[0].key))
    data[len(data) // 2] ^= 1
    store.put(index.shards[0].key, bytes(data))
    for most_bytes in (1 << 30, 1):
        cache.most_bytes = most_bytes
        with pytest.raises(Damaged, match=r"its index says .*: write the set again"):
            cache.open(store, "arrow", index.shards[0])
    assert cache.size_bytes() == 0


def test_a_shard_evicted_while_it_is_opened_is_fetched_again(store, tmp_path, monkeypatch):
    index = some_set(store, shards=1)
    cache = ShardCache(tmp_path / "cache")
    cache.open(store, "arrow", index.shards[0]).close()
    lock, evicted = fcntl.flock, []

    def evicting(file, how):
        if not evicted and how == fcntl.LOCK_SH:
            evicted.append(next(cache.folder.glob("*.arrow")))
            evicted[0].unlink()
        return lock(file, how)

    monkeypatch.setattr(fcntl, "flock", evicting)
    assert cache.open(store, "arrow", index.shards[0]).shard.rows == 100
    assert evicted[0].exists()


def test_the_folder_is_closed_to_others(tmp_path):
    assert ShardCache(tmp_path / "cache").folder.stat().st_mode & 0o777 == 0o700
