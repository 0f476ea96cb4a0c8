"""Many adapters of one base: by llama.cpp in engines that share its weights in memory, by vLLM in one engine that goes on."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests import waiting
from tests.ray_apps.generative.conftest import VLLM, ServedDoor
from tests.ray_apps.generative.test_promotions import write_adapter
from toque.functions.generative import EngineSettings, register_generative
from toque.functions.generative.engines import EngineProcess, EngineProcesses, EngineSpec, engine_of

SMALL = EngineSettings(context_length=128, slots=1)
PROMPT = "The capital of Italy is"


@pytest.fixture
async def engines(tmp_path: Path) -> AsyncIterator[EngineProcesses]:
    found = EngineProcesses(engine_of("llama.cpp"), tmp_path / "logs")
    yield found
    await found.close()


async def said(process: EngineProcess) -> str:
    body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    async with process.client.post(f"{process.base}/v1/completions", json=body) as answer:
        return str((await answer.json())["choices"][0]["text"])


def of_file(process: EngineProcess, file: Path) -> dict[str, int]:
    """Bytes of a file that a process has in memory: all of them, and those that no other process has; and its size."""
    found, is_file = {"Rss": 0, "Private": 0, "size": file.stat().st_size}, False
    for line in Path(f"/proc/{process.pid}/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            is_file = rest[-1:] == [str(file)]
        elif is_file and name.split("_")[0].rstrip(":") in found:
            found[name.split("_")[0].rstrip(":")] += int(rest[0]) * 1024
    return found


@pytest.mark.skipif(VLLM is not None, reason="vLLM has them in one engine")
async def test_engines_of_adapters_share_the_weights_and_leave_those_that_run_alone(
    small: Path, engines: EngineProcesses, tmp_path: Path
):
    base = engines.lease(EngineSpec(small, settings=SMALL, threads=1))
    await base.ready(60)
    pid, before = base.process.pid, await said(base.process)
    files = [write_adapter(tmp_path / f"{seed}.gguf", small, seed=seed, strength=2.0) for seed in range(2)]
    adapted = [engines.lease(EngineSpec(small, adapter=each, settings=SMALL, threads=1)) for each in files]
    for lease in adapted:
        await lease.ready(60)
    texts = [await said(each.process) for each in (base, *adapted)]
    assert texts[0] == before
    assert len(set(texts)) == 3
    assert base.process.pid == pid
    for lease in (base, *adapted):
        pages = await asyncio.to_thread(of_file, lease.process, small)
        assert pages["Rss"] > 0.5 * pages["size"]  # what stands before the numbers is read once
        assert pages["Private"] == 0  # each reads the same ones
    adapted[0].release()
    assert await said(adapted[1].process) == texts[2]
    alone = engines.lease(EngineSpec(small, adapter=files[0], settings=SMALL, threads=1))
    await alone.ready(60)
    assert await said(alone.process) == texts[1]


@pytest.mark.skipif(VLLM is not None, reason="vLLM takes minutes to start")
def test_an_engine_that_nobody_asks_ends_and_the_next_request_has_it_started(served: ServedDoor, small: Path):
    settings = EngineSettings(context_length=192, slots=1, idle_s=1)
    register_generative(served.registry, "seldom", weights=small, settings=settings)
    served.registry.promote("seldom", 1)
    client = served.client()

    def answered() -> int:
        answer = client.completions.create(model="seldom", prompt=PROMPT, max_tokens=2)
        assert answer.usage is not None
        return answer.usage.completion_tokens

    assert answered() == 2
    (process,) = [each for each in served.engines.processes if each.spec.settings.idle_s]
    for _ in range(2):
        waiting.until(lambda: process.pid is None)
        assert answered() == 2
    assert process.restarts == 0


# What follows asks vLLM: TOQUE_TEST_VLLM=COMMAND, see docs/generative.md.

MODEL, LAYERS, WIDTH, RANK = "adapted", 30, 576, 8


def write_peft(folder: Path, seed: int) -> Path:
    """Write an adapter of SmolLM2-135M as `peft` saves one, of random numbers that are large enough to change what it says."""
    folder.mkdir()
    rng, tensors = np.random.default_rng(seed), dict[str, Any]()
    for layer in range(LAYERS):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = rng.normal(0, 0.1, (RANK, WIDTH)).astype(np.float32)
        tensors[f"{name}.lora_B.weight"] = rng.normal(0, 0.1, (WIDTH, RANK)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none",
        "base_model_name_or_path": "base",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def by_transformers(weights: Path, adapter: Path | None) -> str:
    """What `transformers` and `peft` answer to the prompt: the same weights and adapter in a library of others."""
    import torch  # late: seconds
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights)
    network: Any = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)
    if adapter is not None:
        network = PeftModel.from_pretrained(network, adapter)
    asked = tokenizer(PROMPT, return_tensors="pt")
    with torch.no_grad():
        made = network.generate(**asked, max_new_tokens=12, do_sample=False)
    return str(tokenizer.decode(made[0, asked["input_ids"].shape[1] :], skip_special_tokens=True))


@pytest.mark.skipif(VLLM is None, reason="asks vLLM, whose command TOQUE_TEST_VLLM names")
@pytest.mark.proof
@pytest.mark.timeout(3600)
def test_vllm_has_the_adapters_of_all_versions_in_one_engine_again_after_it_was_killed(
    served: ServedDoor, served_weights: Path, tmp_path: Path
):
    registry, client = served.registry, served.client()
    settings = EngineSettings(context_length=256, slots=4, adapter_rank=RANK)
    register_generative(registry, MODEL, weights=served_weights, settings=settings)
    adapters = [write_peft(tmp_path / f"adapter-{seed}", seed) for seed in range(2)]
    for each in adapters:
        register_generative(registry, MODEL, adapter=each, keep=1)
    registry.promote(MODEL, 1)
    registry.set_traffic(MODEL, {"first": (2, 0.3), "second": (3, 0.3)}, reason="adapters beside their base")
    wanted = [by_transformers(served_weights, each) for each in (None, *adapters)]
    assert len(set(wanted)) == 3

    def answers() -> list[str]:
        return [answer(number) for number in (1, 2, 3)]

    def answer(number: int) -> str:
        pieces = list(
            client.completions.create(
                model=f"{MODEL}@{number}", prompt=PROMPT, temperature=0, max_tokens=12, stream=True
            )
        )
        assert {each.model for each in pieces} == {f"{MODEL}@{number}"}
        return "".join(each.choices[0].text for each in pieces if each.choices)

    assert answer(1) == wanted[0]
    (process,) = [each for each in served.engines.processes if each.spec.settings.adapter_rank]
    pid = process.pid
    assert answers() == wanted
    assert [each for each in served.engines.processes if each.spec.settings.adapter_rank] == [process]
    assert process.pid == pid
    assert served.run(loaded(process)) == 3
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    waiting.until(lambda: not process.is_ready)
    waiting.until(lambda: process.is_ready, within_s=900)
    assert served.run(loaded(process)) == 3
    assert answers() == wanted
    registry.set_traffic(MODEL, {}, reason="the base alone")
    waiting.until(
        lambda: served.run(loaded(process)) == 2, within_s=60
    )  # one that was served before stays ready
    assert answers() == wanted


async def loaded(process: EngineProcess) -> int:
    async with process.client.get(f"{process.base}/v1/models") as answer:
        return len((await answer.json())["data"])
