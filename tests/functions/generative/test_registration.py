import json
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from functions.generative import (
    ADAPTER,
    CHAT,
    PROMPT,
    SETTINGS,
    WEIGHTS,
    WEIGHTS_FOLDER,
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


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder as `save_pretrained` writes it."""
    folder = tmp_path / "saved"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


def test_weights_may_be_a_folder_of_safetensors_that_versions_keep(registry: Registry, saved: Path):
    base = register_generative(registry, "chat", weights=saved)
    names = {f"{WEIGHTS_FOLDER}/{each.name}" for each in saved.iterdir()}
    assert set(base.files) == {*names, SETTINGS}
    made = register_generative(registry, "chat", prompt=Prompt(parameters={"temperature": 0}), keep=1)
    assert set(made.files) == {*names, SETTINGS, PROMPT}
    assert all(made.files[name] == base.files[name] for name in names)
    (saved / "model.safetensors").write_text("[]")
    tuned = register_generative(registry, "chat", weights=saved, keep=2)  # files of the same names
    assert set(tuned.files) == set(made.files)
    assert (
        tuned.files[f"{WEIGHTS_FOLDER}/model.safetensors"]
        != base.files[f"{WEIGHTS_FOLDER}/model.safetensors"]
    )


def test_a_version_has_one_kind_of_weights(registry: Registry, saved: Path, weights: Path):
    register_generative(registry, "chat", weights=weights)
    with pytest.raises(GenerativeError, match=r"to keep has weights\.gguf, which would stand beside"):
        register_generative(registry, "chat", weights=saved, keep=1)
    register_generative(registry, "chat", weights=saved)
    with pytest.raises(GenerativeError, match=r"to keep has weights/config\.json"):
        register_generative(registry, "chat", weights=weights, keep=2)
    (saved / "tokenizer.json").unlink()
    with pytest.raises(GenerativeError, match=r"to keep has weights/tokenizer\.json"):
        register_generative(registry, "chat", weights=saved, keep=2)


@pytest.mark.parametrize(
    ("added", "removed", "reason"),
    [
        ("pytorch_model.bin", None, "pytorch_model.bin, which may execute code"),
        (None, "config.json", "has no config.json"),
        (None, "model.safetensors", r"no \*\.safetensors"),
    ],
)
def test_a_folder_that_no_engine_should_read_is_refused(
    registry: Registry, saved: Path, added: str | None, removed: str | None, reason: str
):
    if added:
        (saved / added).write_bytes(b"x")
    if removed:
        (saved / removed).unlink()
    with pytest.raises(GenerativeError, match=f"weights: .*{reason}"):
        register_generative(registry, "chat", weights=saved)
    with pytest.raises(NotFound):
        registry.get_model("chat")


def _folder(tmp_path: Path) -> Path:
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "x.txt").write_text("x")
    return folder


def test_an_earlier_release_reads_the_settings_but_of_a_version_that_embeds_alone_or_names_a_parser():
    known = {"context_length", "slots", "max_tokens", "adapter_scale"}
    assert json.loads(EngineSettings(slots=2).to_json()).keys() == known
    for name, changed in (
        ("task", EngineSettings(task="embed")),
        ("tool_parser", EngineSettings(tool_parser="llama3_json")),
    ):
        assert json.loads(changed.to_json()).keys() == known | {name}
        assert EngineSettings.model_validate_json(changed.to_json()) == changed


@pytest.mark.parametrize("name", ["", "--port", "Hermes", "a b"])
def test_a_parser_whose_name_is_none_is_refused(name: str):
    with pytest.raises(ValidationError, match="tool_parser"):
        EngineSettings(tool_parser=name)
