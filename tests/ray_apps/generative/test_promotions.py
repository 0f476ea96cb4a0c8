"""Prompts, adapters and bases that become champion in turn under running streams."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import waiting
from tests.ray_apps.generative.conftest import ServedDoor
from toque.functions.generative import EngineSettings, Prompt, register_generative

MODEL = "promoted"
SETTINGS = EngineSettings(context_length=256, slots=8, max_tokens=160)
WORDS = {1: "tea", 2: "coffee", 3: "milk", 4: "water"}
PROMOTED = (2, 3, 4, 1)  # a prompt, an adapter, a base, and the first one again


def says(version: int) -> str:
    """What a version answers, and no other does: long enough to be under way while another is promoted, a letter a token."""
    return " ".join([f"I like {WORDS[version]}."] * 4)


def prompt(version: int) -> Prompt:
    """A prompt by which the engine can only answer this, token by token."""
    wanted = {"name": "answer", "schema": {"const": says(version)}}
    return Prompt.model_validate({"response_format": {"type": "json_schema", "json_schema": wanted}})


def write_adapter(to: Path, weights: Path, *, seed: int = 0, strength: float = 0.02) -> Path:
    """Write a LoRA of the weights as llama.cpp reads it, of one matrix and random numbers of so large a deviation."""
    gguf = pytest.importorskip("gguf")
    name = "blk.0.attn_q.weight"
    shape = next(each.shape for each in gguf.GGUFReader(weights).tensors if each.name == name)
    rng, (inputs, outputs) = np.random.default_rng(seed), (int(size) for size in shape)
    writer = gguf.GGUFWriter(to, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 4.0)
    writer.add_tensor(f"{name}.lora_a", rng.normal(0, strength, (4, inputs)).astype(np.float32))
    writer.add_tensor(f"{name}.lora_b", rng.normal(0, strength, (outputs, 4)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to


def write_base(to: Path, weights: Path) -> Path:
    """Write the weights with another name in them: another base by its digest, with an engine of its own."""
    content = weights.read_bytes()
    name = content.index(b"general.name") + len(b"general.name") + 4 + 8  # its type and length stand between
    to.write_bytes(content[:name] + b"x" + content[name + 1 :])
    return to


@pytest.fixture(scope="module")
def promoted(served: ServedDoor, small: Path, tmp_path_factory: pytest.TempPathFactory) -> ServedDoor:
    """A model whose versions differ in prompt, adapter and base, the first of which is the champion."""
    folder, registry = tmp_path_factory.mktemp("promoted"), served.registry
    register_generative(registry, MODEL, weights=small, settings=SETTINGS, prompt=prompt(1))
    register_generative(registry, MODEL, keep=1, prompt=prompt(2))
    adapter = write_adapter(folder / "adapter.gguf", small)
    register_generative(registry, MODEL, keep=1, adapter=adapter, prompt=prompt(3))
    register_generative(
        registry, MODEL, keep=1, weights=write_base(folder / "base.gguf", small), prompt=prompt(4)
    )
    registry.promote(MODEL, 1)
    return served


@dataclass
class Streams:
    """Callers who ask for one stream after the other until they are told to stop.

    faults: streams that were cut, or had a part of another version; seen: versions that answered.
    """

    door: ServedDoor
    stop: threading.Event = field(default_factory=threading.Event)
    seen: set[int] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)

    def ask(self, caller: int) -> int:
        client, count = self.door.client(timeout=600), 0
        while not self.stop.is_set():
            asked: list[Any] = [{"role": "user", "content": f"What do you like, {caller} {count}?"}]
            with client.chat.completions.with_streaming_response.create(
                model=MODEL, messages=asked, stream=True
            ) as response:
                version = int(response.headers["x-toque-version"])
                pieces = list(response.parse())
            text = "".join(each.choices[0].delta.content or "" for each in pieces).strip()
            names = {each.model for each in pieces}
            whole = pieces[-1].choices[0].finish_reason == "stop"
            if not whole or names != {f"{MODEL}@{version}"} or text != f'"{says(version)}"':
                self.faults.append(f"{version}: {names}, {text!r}, {pieces[-1]}")
            self.seen.add(version)
            count += 1
        return count


@pytest.mark.parametrize(
    ("promotions", "streams"),
    [
        pytest.param(4, 3, marks=[pytest.mark.slow, pytest.mark.long]),
        pytest.param(20, 8, marks=[pytest.mark.proof, pytest.mark.timeout(3600)]),
    ],
)
def test_promotions_cut_no_stream_and_mix_no_versions(promoted: ServedDoor, promotions: int, streams: int):
    running = Streams(promoted)
    with ThreadPoolExecutor(streams) as pool:
        callers = [pool.submit(running.ask, number) for number in range(streams)]
        try:
            for number in range(promotions):
                version = PROMOTED[number % len(PROMOTED)]
                running.seen.discard(version)
                promoted.registry.promote(MODEL, version)
                waiting.until(lambda version=version: version in running.seen, within_s=300)  # type: ignore[misc]
        finally:
            running.stop.set()
        counts = [each.result() for each in callers]
    assert not running.faults
    assert min(counts) > 0
    assert running.seen >= {*PROMOTED}
    assert len(promoted.log.rows()) >= sum(counts)
