import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from toque.registry import AlreadyExists, InvalidInput, open_store
from toque.registry.store import FolderStore

# Forks a writer that kills itself before the n-th of the system calls a write is made of, for n = 0, 1, …
# until one lives to the end; prints each writer's exit status.
WRITERS = """
import os, signal, sys
from pathlib import Path
from toque.registry import open_store

calls, die_at = 0, 0

def deadly(function):
    def call(*args, **kwargs):
        global calls
        if calls == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1
        return function(*args, **kwargs)
    return call

def write(url, verb):
    for name in ("fsync", "link", "replace", "unlink", "open", "mkdir"):
        setattr(os, name, deadly(getattr(os, name)))
    for name in ("open", "replace", "unlink", "mkdir"):
        setattr(Path, name, deadly(getattr(Path, name)))
    getattr(open_store(url), verb)("deep/er/key", b"new" * 1000)

url, verb, before = sys.argv[1:]
for die_at in range(60):
    if before:
        open_store(f"{url}{die_at}").put("deep/er/key", before.encode())
    child = os.fork()
    if child == 0:
        write(f"{url}{die_at}", verb)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status)
    if status == 0:
        break
"""


@pytest.mark.parametrize(("verb", "before"), [("create", ""), ("put", ""), ("put", "old")])
def test_kill_at_any_line_leaves_the_old_or_the_new_whole(tmp_path: Path, verb: str, before: str):
    url = f"file://{tmp_path}/store"
    done = subprocess.run(
        [sys.executable, "-c", WRITERS, url, verb, before], check=True, capture_output=True, text=True
    )
    statuses = [int(line) for line in done.stdout.split()]
    assert statuses[-1] == 0
    assert set(statuses[:-1]) == {-signal.SIGKILL}
    old, new, outcomes = before.encode() or None, b"new" * 1000, set()
    for die_at in range(len(statuses)):
        store = open_store(f"{url}{die_at}")
        found = store.find("deep/er/key")
        assert list(store.list("")) == ([] if found is None else ["deep/er/key"])
        outcomes.add(found)
        _retry(store, verb, found)
    assert outcomes == {old, new}


def _retry(store, verb: str, found: bytes | None) -> None:
    """A retry by another process meets either nothing or the whole object."""
    if verb == "create" and found is not None:
        with pytest.raises(AlreadyExists):
            store.create("deep/er/key", b"other")
    else:
        getattr(store, verb)("deep/er/key", b"other")
        assert store.get("deep/er/key") == b"other"


def test_sweep_removes_what_killed_writers_left_and_nothing_younger(tmp_path: Path):
    store = FolderStore(tmp_path / "store")
    store.put("a", b"1")
    old, young = tmp_path / "store/.tmp/old", tmp_path / "store/.tmp/young"
    old.write_bytes(b"x")
    young.write_bytes(b"y")
    os.utime(old, (0, 0))
    assert store.sweep(older_than_s=3600) == 1
    assert young.exists()
    assert list(store.list("")) == ["a"]


def test_an_object_cannot_be_a_folder_too(tmp_path: Path):
    store = FolderStore(tmp_path / "store")
    store.create("a", b"1")
    with pytest.raises(InvalidInput):
        store.create("a/b", b"2")
    assert store.find("a/b") is None
    store.create("c/d", b"1")
    assert store.find("c") is None
    store.delete("c")
    assert store.get("c/d") == b"1"


def test_a_relative_folder_is_refused():
    with pytest.raises(InvalidInput, match="not absolute"):
        FolderStore(Path("relative"))


# Writes one object now and one at exit, each in new folders, and says how often either synced a file or folder.
AT_EXIT = """
import atexit, os, sys
from toque.registry import open_store

url, verb = sys.argv[1:]
store, synced, sync = open_store(url), [], os.fsync

def counted(descriptor):
    synced.append(descriptor)
    sync(descriptor)

def write(key):
    synced.clear()
    getattr(store, verb)(key, b"x")
    print(len(synced))

store.put("made", b"")
os.fsync = counted
write("now/deep/key")
atexit.register(write, "late/deep/key")
"""


@pytest.mark.parametrize("verb", ["create", "put"])
def test_an_object_is_as_durable_when_the_interpreter_ends(tmp_path: Path, verb: str):
    url = f"file://{tmp_path}/store"
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT, url, verb], check=True, capture_output=True, text=True
    )
    assert (done.stdout.split(), done.stderr) == (["4", "4"], "")  # the object, its folder, and two above it
    assert open_store(url).get("late/deep/key") == b"x"
