"""Adapters in one running engine: loaded by the version that has them, there again after each start, and out with the last hold.

The engine is a program with vLLM's routes; `tests/ray_apps/generative/test_adapters.py` asks vLLM itself.
"""

import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.functions.generative.test_engine_process import until
from toque.functions.generative import EngineSettings
from toque.functions.generative.engines import (
    EngineDown,
    EngineProcesses,
    EngineRefusal,
    EngineSpec,
    Lease,
    Patience,
    engine_of,
)

PROGRAM = f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("routes_of_vllm.py")} "$@"\n'
SETTINGS = EngineSettings(slots=2, adapter_rank=8)


@pytest.fixture
async def engines(tmp_path: Path) -> AsyncIterator[EngineProcesses]:
    program = tmp_path / "vllm"
    program.write_text(PROGRAM)
    program.chmod(0o700)
    found = EngineProcesses(
        engine_of("vllm", str(program)),
        tmp_path / "logs",
        patience=Patience(start_s=60, hung_s=5, check_s=0.1),
    )
    yield found
    await found.close()


def adapted(folder: Path, name: str, settings: EngineSettings = SETTINGS) -> EngineSpec:
    """Weights with an adapter whose folder has what the program looks for."""
    adapter = folder / name
    adapter.mkdir(exist_ok=True)
    (adapter / "adapter_config.json").write_text("{}")
    return EngineSpec(folder, adapter=adapter, settings=settings)


async def said(lease: Lease) -> str:
    """What the engine answers: the model that it was asked for, and its process."""
    await lease.ready(60)
    body = {"model": lease.model, "prompt": "1"}
    async with lease.process.client.post(f"{lease.process.base}/v1/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        return str((await answer.json())["choices"][0]["text"])


async def loaded(lease: Lease) -> set[str]:
    async with lease.process.client.get(f"{lease.process.base}/v1/models") as answer:
        return {each["id"] for each in (await answer.json())["data"]}


async def test_adapters_of_the_same_weights_share_an_engine_that_goes_on_as_they_come_and_go(
    engines: EngineProcesses, tmp_path: Path
):
    base = engines.lease(EngineSpec(tmp_path, settings=SETTINGS))
    await base.ready(60)
    pid = base.process.pid
    leases = [engines.lease(adapted(tmp_path, f"adapter-{number}")) for number in range(3)]
    assert [await said(each) for each in (base, *leases)] == [
        f"{name} of {pid}"
        for name in ("toque-engine", *(f"toque-engine-adapter-{number}" for number in range(3)))
    ]
    assert engines.processes == [base.process]
    other = engines.lease(adapted(tmp_path, "adapter-0", SETTINGS.model_copy(update={"max_tokens": 7})))
    assert (other.model, other.process) == (leases[0].model, base.process)
    leases[0].release()
    other.release()
    await until_loaded(base, {each.model for each in (base, *leases[1:])})
    base.release()
    assert (await said(leases[1])).endswith(f" of {pid}")
    for each in leases:
        each.release()
    await until_none(engines)
    assert engines.restarts == 0


async def until_loaded(lease: Lease, names: set[str]) -> None:
    found: list[set[str]] = []
    for _ in range(600):
        found.append(await loaded(lease))
        if found[-1] == names:
            return
    raise AssertionError(f"{names} are not what is loaded: {found[-1]}")


async def until_none(engines: EngineProcesses) -> None:
    await until(lambda: not engines.processes)


async def test_a_killed_engine_has_its_adapters_again_before_it_is_ready(
    engines: EngineProcesses, tmp_path: Path
):
    leases = [engines.lease(adapted(tmp_path, f"adapter-{number}")) for number in range(2)]
    before = [await said(each) for each in leases]
    process = leases[0].process
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    await until(lambda: not process.is_ready)
    await process.ready(60)
    assert await loaded(leases[0]) == {"toque-engine", *(each.model for each in leases)}
    after = [await said(each) for each in leases]
    assert [each.split()[0] for each in after] == [each.split()[0] for each in before]
    assert after != before


async def test_an_idle_engine_has_its_adapters_again_for_the_next_request(
    engines: EngineProcesses, tmp_path: Path
):
    version = engines.lease(adapted(tmp_path, "adapter-0", SETTINGS.model_copy(update={"idle_s": 1})))
    before = await said(version)
    await until(lambda: version.process.pid is None)
    answer = version.again()
    after = await said(answer)
    answer.release()
    assert after.split()[0] == before.split()[0] == version.model
    assert after != before
    assert engines.restarts == 0


async def test_an_adapter_that_the_engine_refuses_harms_no_other(engines: EngineProcesses, tmp_path: Path):
    good = engines.lease(adapted(tmp_path, "adapter-good"))
    await good.ready(60)
    spec = adapted(tmp_path, "adapter-spoilt")
    assert spec.adapter is not None
    config = spec.adapter / "adapter_config.json"
    config.write_text('{"made for": "spoilt"}')
    spoilt = engines.lease(spec)
    with pytest.raises(EngineDown, match=r"adapter: vLLM does not load it: status 500: .*size mismatch"):
        await spoilt.ready(60)
    config.write_text("{}")
    await spoilt.ready(60)  # asked again, it is tried again
    config.write_text('{"made for": "spoilt"}')
    assert good.process.pid is not None
    os.kill(good.process.pid, signal.SIGKILL)
    await until(lambda: not good.process.is_ready)
    assert (await said(good)).startswith(good.model)
    with pytest.raises(EngineDown, match="size mismatch"):
        await spoilt.ready(60)


async def test_an_adapter_that_is_wanted_again_while_it_leaves_is_there(
    engines: EngineProcesses, tmp_path: Path
):
    spec = adapted(tmp_path, "adapter-0")
    base = engines.lease(EngineSpec(tmp_path, settings=SETTINGS))
    for _ in range(20):
        lease = engines.lease(spec)
        assert (await said(lease)).startswith(lease.model)
        lease.release()
    with pytest.raises(EngineDown, match="not served any more"):
        lease.again()
    await until_loaded(base, {base.model})


async def test_settings_that_shape_the_process_are_another_engine(engines: EngineProcesses, tmp_path: Path):
    first = engines.lease(adapted(tmp_path, "adapter-0"))
    roomier = engines.lease(adapted(tmp_path, "adapter-0", SETTINGS.model_copy(update={"adapter_rank": 16})))
    assert first.process is not roomier.process
    (tmp_path / "a.gguf").touch()
    with pytest.raises(EngineDown, match=r"reads folders as `peft` saves them"):
        engines.lease(EngineSpec(tmp_path, adapter=tmp_path / "a.gguf", settings=SETTINGS))


async def test_a_prompt_that_vllm_does_not_count_is_an_error_that_says_so(
    engines: EngineProcesses, tmp_path: Path
):
    lease = engines.lease(EngineSpec(tmp_path, settings=SETTINGS))
    await lease.ready(60)
    count = lease.process.engine.count_tokens
    client, base = lease.process.client, lease.process.base
    assert await count(client, base, {"prompt": "1"}) == 1
    with pytest.raises(
        EngineRefusal, match=r"does not count the prompt's tokens: status 400: .*no template"
    ) as refusal:
        await count(client, base, {"messages": []})
    assert refusal.value.status == 400
    with pytest.raises(aiohttp.ClientError):
        await count(client, "http://127.0.0.1:9", {"prompt": "1"})


async def test_vllm_counts_a_chat_with_the_arguments_of_its_template_and_decodes_token_ids(
    engines: EngineProcesses, tmp_path: Path
):
    lease = engines.lease(EngineSpec(tmp_path, settings=SETTINGS))
    await lease.ready(60)
    engine, client, base = lease.process.engine, lease.process.client, lease.process.base
    arguments = {"enable_thinking": False, "style": "brief"}
    assert await engine.count_tokens(client, base, {"messages": [], "chat_template_kwargs": arguments}) == 2
    assert await engine.decode(client, base, [7, 5]) == "t7 t5"


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ('{"vocab_size": 49152}', 49_152),
        ('{"text_config": {"vocab_size": 7}}', 7),
        ('{"model_type": "llama"}', None),
        ("[]", None),
        ("{", None),
        (None, None),
    ],
)
async def test_a_vocabulary_is_that_of_the_weights(
    engines: EngineProcesses, tmp_path: Path, config: str | None, size: int | None
):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    lease = engines.lease(EngineSpec(tmp_path, settings=SETTINGS))
    await lease.ready(60)
    assert lease.process.vocabulary == size
