"""Uploads of large parts of a checkpoint through a process of their own."""

import os
import subprocess
import sys
import tempfile
from hashlib import sha256

import psutil
import pytest

from functions.training.checkpoints import uploads
from functions.training.checkpoints.saved import Checkpoints
from functions.training.checkpoints.uploader import upload_pieces
from functions.training.checkpoints.uploads import upload_apart
from functions.training.loop.keeping import Keeper
from functions.training.loop.process_group import SingleProcess
from functions.training.loop.pulse import Cadence
from functions.training.loop.training_loop import train
from registry import RegistryError, Unavailable
from tests.functions.training.recipes import FAST, trainer
from tests.functions.training.stores import Killed
from tests.waiting import until


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "part.bin"
    path.write_bytes(b"weights")
    return path


SPANS = [(0, 2), (2, 5), (7, 0)]


@pytest.mark.parametrize("way", [upload_apart, upload_pieces])
def test_a_file_arrives_whole_and_its_pieces_are_hashed(context, file, way):
    found = way(context.store, "checkpoints/one", file, SPANS)
    assert context.store.get("checkpoints/one") == b"weights"
    assert found == [(sha256(b"we").hexdigest()[:32],), (sha256(b"ights").hexdigest()[:32],), ()]


def test_errors_are_the_stores_own(context, file):
    with pytest.raises(RegistryError) as apart:
        upload_apart(context.store, "../out", file, SPANS)
    with pytest.raises(type(apart.value)) as here:
        context.store.upload("../out", file)
    assert str(apart.value) == str(here.value)


def test_an_upload_that_is_killed_says_so(file):
    with pytest.raises(Unavailable, match="checkpoints/one: the process that uploads it ended with code -9"):
        upload_apart(Killed(), "checkpoints/one", file, SPANS)


@pytest.mark.parametrize(("of_training", "idle"), [(0, False), (15, True)])
def test_an_upload_has_the_lowest_priority_and_ends_with_a_training_that_is_killed(file, of_training, idle):
    training = subprocess.Popen(
        ["nice", "-n", str(of_training), sys.executable, "-m", "tests.functions.training.stores", str(file)]
    )
    said = file.with_suffix(".pid")
    until(said.exists)
    process, niceness = map(int, said.read_text().split())
    assert niceness == 19
    ours = os.sched_getscheduler(0)
    assert os.sched_getscheduler(process) == (os.SCHED_IDLE if idle else ours)
    upload = psutil.Process(process)
    training.kill()
    training.wait()
    until(lambda: not upload.is_running() or upload.status() == psutil.STATUS_ZOMBIE)


def test_a_training_whose_parts_go_through_a_process_resumes_from_them(context, monkeypatch, tmp_path):
    apart, scratch = [], tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))

    def spy(*given: object):
        apart.append(
            [each for each in scratch.iterdir() if each.is_file()]
        )  # what would be left if it were killed now
        return upload_apart(*given)

    monkeypatch.setattr(uploads, "APART_FROM_BYTES", 0)
    monkeypatch.setattr(uploads, "upload_apart", spy)
    params = FAST.model_copy(update={"epochs": 2})
    undisturbed, checkpoints = trainer(params), Checkpoints.of(context.store, {"apart": 1})
    train(undisturbed, SingleProcess(), keeper=Keeper(SingleProcess(), checkpoints, Cadence()))
    resumed = trainer(params)
    Keeper(SingleProcess(), checkpoints).resume(resumed)
    assert apart == [[], []]
    assert [e.valid_loss for e in resumed.epochs] == [e.valid_loss for e in undisturbed.epochs]
