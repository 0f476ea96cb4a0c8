from datetime import timedelta
from pathlib import Path

import pytest

from functions.generative import (
    ADAPTER,
    CHAT,
    PROMPT,
    SETTINGS,
    WEIGHTS,
    EngineSettings,
    GenerativeError,
    Prompt,
    is_generative,
    register_generative,
)
from registry import NotFound, Registry, open_store


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(open_store(f"file://{tmp_path}/store"), actor="ada")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    found = tmp_path / "small.gguf"
    found.write_bytes(b"GGUF" + b"w" * 1_000)
    return found


def test_a_prompt_is_a_whole_version_on_the_same_weights(registry: Registry, weights: Path, tmp_path: Path):
    base = register_generative(registry, "chat", weights=weights, settings=EngineSettings(slots=2))
    weights.unlink()  # nobody needs them again
    prompt = Prompt.model_validate({"messages": [{"role": "system", "content": "Be brief."}]})
    made = register_generative(registry, "chat", prompt=prompt, keep=1)
    assert set(made.files) == {WEIGHTS, SETTINGS, PROMPT}
    assert made.files[WEIGHTS] == base.files[WEIGHTS]
    assert made.lineage.parent == 1
    assert made.signature == CHAT
    assert is_generative(made)
    assert made.digest != base.digest
    folder = registry.download("chat", 2, tmp_path / "out")
    assert Prompt.model_validate_json((folder / PROMPT).read_bytes()) == prompt
    assert EngineSettings.model_validate_json((folder / SETTINGS).read_bytes()).slots == 2


def test_weights_live_as_long_as_any_version_has_them(registry: Registry, weights: Path, tmp_path: Path):
    register_generative(registry, "chat", weights=weights)
    register_generative(registry, "chat", prompt=Prompt(parameters={"temperature": 0}), keep=1)
    registry.delete_version("chat", 1)
    registry.collect_garbage(grace=timedelta(0))
    assert registry.download("chat", 2, tmp_path / "out").joinpath(WEIGHTS).stat().st_size == 1_004
    with pytest.raises(NotFound, match="keep=1"):
        registry.create_version("chat", _folder(tmp_path), keep=1)


def test_an_adapter_comes_beside_the_kept_prompt(registry: Registry, weights: Path):
    prompt = Prompt(parameters={"temperature": 0})
    register_generative(registry, "chat", weights=weights, prompt=prompt)
    made = register_generative(registry, "chat", adapter=weights, keep=1)
    assert set(made.files) == {WEIGHTS, SETTINGS, PROMPT, ADAPTER}


def test_what_is_no_gguf_is_refused(registry: Registry, tmp_path: Path):
    pickled = tmp_path / "model.gguf"
    pickled.write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(GenerativeError, match=r"weights\.gguf: .* is no GGUF file"):
        register_generative(registry, "chat", weights=pickled)
    with pytest.raises(GenerativeError, match="weights: missing"):
        register_generative(registry, "chat", prompt=Prompt(parameters={"temperature": 0}))


def _folder(tmp_path: Path) -> Path:
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "x.txt").write_text("x")
    return folder
