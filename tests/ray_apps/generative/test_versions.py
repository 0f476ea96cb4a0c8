"""Versions on their way to an engine: weights in a folder are laid out by their names, once, and go with the last version."""

import asyncio
from pathlib import Path

import pytest

from functions.generative import EngineSettings, Prompt, register_generative
from functions.generative.engines import EngineProcesses, engine_of
from ray_apps.generative.versions import VersionStarter
from ray_apps.predictor.versions.loaded import LoadError
from registry import Registry, open_store

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
