"""The supervisor of an engine, with a real engine that is killed, hangs, is given nonsense, or loses its parent."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from toque.functions.generative import EngineSettings
from toque.functions.generative.engines import (
    EngineDown,
    EngineProcess,
    EngineProcesses,
    EngineSpec,
    engine_environment,
    engine_of,
)
from toque.functions.generative.engines.process import Patience
from toque.functions.generative.engines.programs import Vllm

ROOT = Path(__file__).parents[3]
SMALL = EngineSettings(context_length=128, slots=1)


async def until(condition: Callable[[], bool], within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


@pytest.fixture
async def process(weights: Path, tmp_path: Path) -> AsyncIterator[EngineProcess]:
    found = EngineProcess(
        engine_of("llama.cpp"), EngineSpec(weights, settings=SMALL, threads=1), tmp_path / "engine.log",
        patience=Patience(start_s=60, hung_s=3, check_s=0.1),
    )  # fmt: skip
    found.start()
    await found.ready(60)
    yield found
    await found.close()


async def ask(process: EngineProcess) -> str:
    body = {"model": "any", "prompt": "The capital of Italy is", "max_tokens": 3, "temperature": 0}
    async with process.client.post(f"{process.base}/v1/completions", json=body) as answer:
        return str((await answer.json())["choices"][0]["text"])


async def test_an_engine_that_is_killed_or_hangs_is_started_anew(process: EngineProcess):
    for end, restarts in ((signal.SIGKILL, 1), (signal.SIGSTOP, 2)):
        assert process.pid is not None
        os.kill(process.pid, end)
        await until(lambda: not process.is_ready)
        await process.ready(60)
        assert process.restarts == restarts
        assert "Rome" in await ask(process)


async def test_an_engine_is_among_the_first_to_end_when_memory_runs_out(process: EngineProcess):
    scores = [
        int(await asyncio.to_thread(Path(f"/proc/{each}/oom_score_adj").read_text))
        for each in (process.pid, "self")
    ]
    assert scores[0] >= 800 > scores[1]


async def test_an_engine_runs_in_a_folder_of_its_own(process: EngineProcess, tmp_path: Path):
    """In that of the project its interpreter would find our packages by the names of its own."""
    assert await asyncio.to_thread(os.readlink, f"/proc/{process.pid}/cwd") == str(tmp_path)


async def test_an_engine_answers_nobody_without_its_key(process: EngineProcess):
    asked = {"prompt": "1", "max_tokens": 1}
    async with aiohttp.ClientSession() as stranger:
        for headers in ({}, {"authorization": "Bearer guessed"}):
            async with stranger.post(f"{process.base}/v1/completions", json=asked, headers=headers) as answer:
                assert answer.status == 401
        for path in ("slots", "props"):  # what others asked, and how
            async with stranger.get(f"{process.base}/{path}") as answer:
                assert answer.status == 401
    assert process.pid is not None
    line = (await asyncio.to_thread(Path(f"/proc/{process.pid}/cmdline").read_bytes)).decode()
    key = process.client.headers["authorization"].removeprefix("Bearer ")
    assert key not in line
    assert len(key) > 32


async def test_an_engine_that_cannot_start_says_why(tmp_path: Path):
    (tmp_path / "weights.gguf").write_bytes(b"GGUF and nothing more")
    spec = EngineSpec(tmp_path / "weights.gguf", settings=SMALL)
    process = EngineProcess(engine_of("llama.cpp"), spec, tmp_path / "engine.log")
    process.start()
    try:
        await until(lambda: process.restarts > 0)
        with pytest.raises(EngineDown, match="ended with status"):
            await process.ready(0.01)
        with pytest.raises(EngineDown, match="ended with status"):
            await process.ready(10_000)  # which nobody waits for: start after start fails
        assert process.restarts >= 2
    finally:
        await process.close()


async def test_an_engine_runs_as_long_as_somebody_holds_it(weights: Path, tmp_path: Path):
    engines = EngineProcesses(engine_of("llama.cpp"), tmp_path)
    spec = EngineSpec(weights, settings=SMALL, threads=1)
    first = engines.lease(spec)
    second = engines.lease(replace(spec, settings=SMALL.model_copy(update={"max_tokens": 7})))
    assert first.process is second.process
    await first.process.ready(60)
    pid = first.process.pid
    assert pid is not None
    first.release()
    first.release()  # counts once
    assert len(engines.processes) == 1
    answer = second.again()
    second.release()
    assert "Rome" in await ask(answer.process)
    answer.release()
    assert engines.processes == []
    await until(lambda: not Path(f"/proc/{pid}").exists())
    with pytest.raises(EngineDown):
        answer.again()
    await engines.close()


async def test_an_idle_engine_ends_and_the_next_request_starts_it(weights: Path, tmp_path: Path):
    engines = EngineProcesses(engine_of("llama.cpp"), tmp_path, patience=Patience(start_s=60, check_s=0.05))
    settings = SMALL.model_copy(update={"idle_s": 1})
    version = engines.lease(EngineSpec(weights, settings=settings, threads=1))
    await version.ready(60)
    process, pid = version.process, version.process.pid
    answer = version.again()
    begin = time.monotonic()
    await until(
        lambda: time.monotonic() > begin + 1.5
    )  # longer than it may be idle, but somebody is answered
    assert process.pid == pid
    answer.release()
    await until(lambda: process.pid is None)
    assert process.is_idle
    assert not process.is_ready
    later = version.again()
    await later.ready(60)
    assert "Rome" in await ask(process)
    later.release()
    assert process.pid != pid
    assert engines.restarts == 0  # none of them was a fault
    await until(lambda: process.pid is None)
    await version.ready(60)  # as a second version with these weights does
    await engines.close()


PARENT = """
import asyncio, sys
from pathlib import Path
from toque.functions.generative import EngineSettings
from toque.functions.generative.engines import EngineProcess, EngineSpec, engine_of

async def main():
    spec = EngineSpec(Path(sys.argv[1]), settings=EngineSettings(context_length=128, slots=1), threads=1)
    process = EngineProcess(engine_of("llama.cpp"), spec, Path(sys.argv[2]))
    process.start()
    await process.ready(60)
    print(process.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_an_engine_ends_with_the_process_that_started_it(weights: Path, tmp_path: Path):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(weights), str(tmp_path / "log")],
        stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while _runs(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_engine_sees_nothing_of_the_platform():
    shown = engine_environment(
        {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0", "AWS_SECRET_ACCESS_KEY": "s", "TOQUE_X": "y"}
    )
    assert shown == {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0"}


async def test_vllm_without_a_parser_takes_no_tools_and_embeds_for_versions_that_embed_alone():
    engine, embeds = (
        Vllm("v"),
        EngineSpec(Path("/w"), settings=EngineSettings(context_length=64, task="embed")),
    )
    async with aiohttp.ClientSession() as nobody:
        said = await engine.no_tools(nobody, "http://127.0.0.1:9", EngineSpec(Path("/w")))
    assert "the setting tool_parser" in (said or "")
    assert engine.embedding_bounds(EngineSpec(Path("/w"))).tokens == 0
    assert engine.embedding_bounds(embeds) == (True, 64)


def test_weights_are_shared_and_adapters_are_loaded_as_the_settings_say():
    llama = engine_of("llama.cpp")
    settings = EngineSettings(share_weights=True, adapter_rank=8, idle_s=5, max_tokens=7)
    spec = EngineSpec(Path("/w"), adapter=Path("/a"), settings=settings)
    started = llama.process_spec(spec)
    assert started.adapter == spec.adapter  # it has the adapter from its start
    assert started.settings == EngineSettings(share_weights=True, idle_s=5)
    assert "--share-weights" in llama.command(started, 7)
    assert "--share-weights" not in llama.command(EngineSpec(Path("/w")), 7)


def test_vllm_is_another_command_line():
    spec = EngineSpec(Path("/w"), settings=EngineSettings(context_length=4096, slots=16))
    line = Vllm("/env/bin/vllm").command(spec, 7)
    assert line[:3] == ["/env/bin/vllm", "serve", "/w"]
    assert {"--max-model-len", "4096", "--max-num-seqs", "16", "--enable-prefix-caching"} <= set(line)
    assert not any("lora" in each for each in line)
    adapting = Vllm("v").command(EngineSpec(Path("/w"), settings=EngineSettings(slots=4, adapter_rank=16)), 7)
    assert adapting[-7:] == [
        "--enable-lora",
        "--max-lora-rank",
        "16",
        "--max-loras",
        "4",
        "--max-cpu-loras",
        "256",
    ]
    embedding = Vllm("v").command(EngineSpec(Path("/w"), settings=EngineSettings(task="embed")), 7)
    assert embedding[-4:] == ["--runner", "pooling", "--convert", "embed"]
    assert "--runner" not in line
    assert "--tool-call-parser" not in line
    tooled = Vllm("v").command(EngineSpec(Path("/w"), settings=EngineSettings(tool_parser="hermes")), 7)
    assert tooled[-3:] == ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    with pytest.raises(ValueError, match=r"there are 'llama\.cpp' and 'vllm'"):
        engine_of("other")
