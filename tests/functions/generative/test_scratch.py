"""Folders for the files of engines: they go with the process that made them, however it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from toque.functions.generative.engines import engine_of, scratch_folder, sweep_scratch

HOLD = """
import sys
from toque.functions.generative.engines import scratch_folder
with scratch_folder() as folder:
    (folder / "weights.gguf").write_bytes(b"w" * 1_000)
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    tempfile.tempdir = None


@pytest.fixture
def holder() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    yield process, Path(process.stdout.readline().strip())
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


@pytest.mark.parametrize("by", ["the next that starts", "a sweep"])
def test_what_a_killed_process_left_is_removed_and_a_living_ones_stays(
    holder: tuple[subprocess.Popen[str], Path], by: str
):
    process, folder = holder

    def sweep() -> None:
        if by == "a sweep":
            sweep_scratch()
        else:
            with scratch_folder() as own:
                assert own.is_dir()
            assert not own.exists()

    sweep()
    assert (folder / "weights.gguf").exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / "weights.gguf").exists()
    sweep()
    assert not folder.exists()


def test_threads_of_llama_cpp_sleep_unless_the_operator_says_otherwise():
    assert engine_of("llama.cpp").variables["OMP_WAIT_POLICY"] == "passive"
