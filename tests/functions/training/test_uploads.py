"""Uploads of large parts of a checkpoint through a process of their own."""

import io
import os
import subprocess
import sys
import threading
import time
from hashlib import sha256

import psutil
import pytest

from tests.functions.training.recipes import FAST, trainer
from tests.functions.training.stores import Killed
from tests.waiting import until
from toque.functions.training.checkpoints import storage
from toque.functions.training.checkpoints.saved import Checkpoints
from toque.functions.training.checkpoints.storage import Pace, upload, upload_apart
from toque.functions.training.checkpoints.uploader import BLOCK_BYTES, Pieces, digests_of
from toque.functions.training.loop.keeping import Cadence, Keeper
from toque.functions.training.loop.process_group import SingleProcess
from toque.functions.training.loop.training_loop import train
from toque.registry import RegistryError, Unavailable

PIECES = [memoryview(b"we"), memoryview(b"ights"), memoryview(b"")]


@pytest.mark.parametrize("way", [upload_apart, upload])
def test_a_part_arrives_whole_and_its_pieces_are_hashed(context, way):
    found = way(context.store, "checkpoints/one", PIECES, Pace())
    assert context.store.get("checkpoints/one") == b"weights"
    assert found == [(sha256(b"we").hexdigest()[:32],), (sha256(b"ights").hexdigest()[:32],), ()]


@pytest.mark.parametrize("read", [1 << 19, BLOCK_BYTES + 1, 5 << 20, -1])
def test_blocks_are_hashed_however_they_are_read(read):
    whole = os.urandom((7 << 20) + 3)
    sizes = [3, 0, BLOCK_BYTES, (3 << 20) + 1]
    sizes.append(len(whole) - sum(sizes))
    pieces = Pieces(io.BytesIO(whole + b"what follows"), sizes)
    assert b"".join(iter(lambda: pieces.read(read), b"")) == whole
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    wanted = [digests_of(memoryview(whole)[at : at + size]) for at, size in zip(starts, sizes, strict=True)]
    assert [tuple(each) for each in pieces.digests] == wanted


def test_a_source_that_ends_early_is_no_whole_part():
    with pytest.raises(EOFError):
        Pieces(io.BytesIO(b"weigh"), [2, 5]).read()


def test_errors_are_the_stores_own(context):
    with pytest.raises(RegistryError) as apart:
        upload_apart(context.store, "../out", [memoryview(bytes(8 << 20))], Pace())  # more than a pipe holds
    with pytest.raises(type(apart.value)) as here:
        context.store.put("../out", b"")
    assert str(apart.value) == str(here.value)


def test_an_upload_that_is_killed_says_so():
    with pytest.raises(Unavailable, match="checkpoints/one: the process that uploads it ended with code -9"):
        upload_apart(Killed(), "checkpoints/one", PIECES, Pace())


@pytest.mark.parametrize(("of_training", "idle"), [(0, False), (15, True)])
def test_an_upload_has_the_lowest_priority_and_ends_with_a_training_that_is_killed(
    tmp_path, of_training, idle
):
    said = tmp_path / "upload.pid"
    training = subprocess.Popen(
        ["nice", "-n", str(of_training), sys.executable, "-m", "tests.functions.training.stores", str(said)]
    )
    until(said.exists)
    process, niceness = map(int, said.read_text().split())
    assert niceness == 19
    ours = os.sched_getscheduler(0)
    assert os.sched_getscheduler(process) == (os.SCHED_IDLE if idle else ours)
    upload = psutil.Process(process)
    training.kill()
    training.wait()
    until(lambda: not upload.is_running() or upload.status() == psutil.STATUS_ZOMBIE)


def test_a_part_is_sent_evenly_over_its_time(context):
    began = time.monotonic()
    upload_apart(context.store, "checkpoints/one", [memoryview(bytes(8 << 20))] * 2, Pace(1.6))
    assert time.monotonic() - began >= 1.5  # the last of sixteen blocks goes after fifteen sixteenths


def test_a_part_that_is_waited_for_is_sent_at_once(context):
    pace, began = Pace(3_600.0), time.monotonic()
    sent = threading.Thread(
        target=upload_apart, args=(context.store, "checkpoints/one", [memoryview(bytes(8 << 20))], pace)
    )
    sent.start()
    pace.hurry()
    sent.join()
    assert time.monotonic() - began < 240  # of an hour
    assert context.store.get("checkpoints/one") == bytes(8 << 20)


def test_a_training_whose_parts_go_through_a_process_resumes_from_them(context, monkeypatch):
    monkeypatch.setattr(storage, "APART_FROM_BYTES", 0)
    params = FAST.model_copy(update={"epochs": 2})
    undisturbed, checkpoints = trainer(params), Checkpoints.of(context.store, {"apart": 1})
    train(undisturbed, SingleProcess(), keeper=Keeper(SingleProcess(), checkpoints, Cadence()))
    resumed = trainer(params)
    Keeper(SingleProcess(), checkpoints).resume(resumed)
    assert [e.valid_loss for e in resumed.epochs] == [e.valid_loss for e in undisturbed.epochs]


def test_the_next_checkpoint_and_the_end_wait_for_no_interval(context, monkeypatch):
    monkeypatch.setattr(storage, "APART_FROM_BYTES", 0)
    now = iter(range(0, 10**9, 3_600))  # each look at the clock an hour later
    keeper = Keeper(
        SingleProcess(), Checkpoints.of(context.store, {"slow": 1}), clock=lambda: float(next(now))
    )
    each, began = trainer(), time.monotonic()
    keeper.save(each)
    assert keeper.writing
    keeper.save(each)
    keeper.close()
    assert time.monotonic() - began < 240  # of two times five minutes
