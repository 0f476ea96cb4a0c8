"""Versions on their way to an engine: weights in a folder are laid out by their names, once, and go with the last version."""

import asyncio
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from toque.functions.generative import EngineSettings, Prompt, register_generative
from toque.functions.generative.engines import EngineProcesses, engine_of
from toque.ray_apps.generative.versions import VersionStarter
from toque.ray_apps.predictor.versions.loaded import LoadError
from toque.registry import Registry, open_store

ROUTES = Path(__file__).parents[2] / "functions/generative/routes_of_vllm.py"
PROGRAM = """#!/bin/sh
ls "$2" > "$0.seen"
exit 3
"""


async def test_a_folder_of_weights_reaches_the_engine_by_its_names_and_is_removed(tmp_path: Path):
    """The engine is a program that notes what is in the folder that it is given, and ends."""
    registry = Registry(open_store(f"file://{tmp_path}/store"), actor="ada")
    saved = tmp_path / "saved"
    saved.mkdir()
    for name in ("config.json", "model.safetensors"):
        (saved / name).write_text(name)
    register_generative(registry, "chat", weights=saved, settings=EngineSettings(slots=1))
    program = tmp_path / "vllm"
    program.write_text(PROGRAM)
    program.chmod(0o700)
    engines = EngineProcesses(engine_of("vllm", str(program)), tmp_path / "logs")
    folder = tmp_path / "weights"
    starter = VersionStarter(
        registry, engines, workspace="default", loop=asyncio.get_running_loop(), folder=folder
    )
    with pytest.raises(LoadError, match=r"chat@1 cannot be served: .* ended with status 3"):
        await asyncio.to_thread(starter.start, registry.get_version("chat", 1))
    assert (tmp_path / "vllm.seen").read_text().split() == ["config.json", "model.safetensors"]
    assert list((folder / "default").iterdir()) == []
    await engines.close()


def peft_folder(folder: Path, *, base: str = "base", rank: int = 8) -> Path:
    """Make a folder as `peft` saves an adapter, with a card beside it that nothing needs."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": rank, "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({base: np.zeros(1, np.float32)}, folder / "adapter_model.safetensors")
    (folder / "README.md").write_text("a card")
    return folder


async def test_adapters_of_versions_share_an_engine_and_leave_with_their_version(tmp_path: Path):
    """The engine is a program with vLLM's routes; its answers are vLLM's own in `test_adapters.py`."""
    registry = Registry(open_store(f"file://{tmp_path}/store"), actor="ada")
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "config.json").write_text("{}")
    save_file({"weight": np.zeros(1, np.float32)}, saved / "model.safetensors")
    register_generative(registry, "chat", weights=saved, settings=EngineSettings(adapter_rank=8))
    for base in ("one", "two", "spoilt"):
        register_generative(registry, "chat", adapter=peft_folder(tmp_path / base, base=base), keep=1)
    program = tmp_path / "vllm"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {ROUTES} "$@"\n')
    program.chmod(0o700)
    engines, folder = EngineProcesses(engine_of("vllm", str(program)), tmp_path / "logs"), tmp_path / "files"
    starter = VersionStarter(
        registry, engines, workspace="default", loop=asyncio.get_running_loop(), folder=folder
    )
    versions = [
        await asyncio.to_thread(starter.start, registry.get_version("chat", number)) for number in (1, 2, 3)
    ]
    assert len(engines.processes) == 1
    assert len({each.lease.model for each in versions}) == 3
    with pytest.raises(
        LoadError, match=r"chat@4 cannot be served: adapter: .*size mismatch.*; register a version with"
    ):
        await asyncio.to_thread(starter.start, registry.get_version("chat", 4))
    for each in versions[1:]:
        starter.dropped(each)
    (left,) = [path for path in (folder / "default").iterdir() if path.is_dir()]
    assert {path.name for path in left.iterdir()} == {"config.json", "model.safetensors"}
    starter.dropped(versions[0])
    assert list((folder / "default").iterdir()) == []
    while engines.processes:  # noqa: ASYNC110  # they end on this loop
        await asyncio.sleep(0.01)
    await engines.close()


async def test_llama_cpp_says_that_it_does_not_read_a_folder(tmp_path: Path):
    registry = Registry(open_store(f"file://{tmp_path}/store"), actor="ada")
    saved = tmp_path / "saved"
    saved.mkdir()
    for name in ("config.json", "model.safetensors"):
        (saved / name).write_text(name)
    register_generative(registry, "chat", weights=saved, prompt=Prompt())
    engines = EngineProcesses(engine_of("llama.cpp"), tmp_path / "logs")
    starter = VersionStarter(
        registry, engines, workspace="default", loop=asyncio.get_running_loop(), folder=tmp_path / "weights"
    )
    with pytest.raises(LoadError, match=r"llama\.cpp reads GGUF and no folder of safetensors"):
        await asyncio.to_thread(starter.start, registry.get_version("chat", 1))
    await engines.close()
