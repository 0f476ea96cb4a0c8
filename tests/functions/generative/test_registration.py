import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import save_file

from toque.functions.generative import (
    ADAPTER,
    ADAPTER_FOLDER,
    CHAT,
    PROMPT,
    SETTINGS,
    WEIGHTS,
    WEIGHTS_FOLDER,
    EngineSettings,
    GenerativeError,
    Prompt,
    engine_files,
    is_generative,
    register_generative,
)
from toque.functions.generative.version_files import check_shapes
from toque.registry import NotFound, Registry, open_store


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


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A folder as `peft` saves an adapter."""
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 12, "lora_alpha": 16}))
    (folder / "adapter_model.safetensors").write_text("numbers")
    (folder / "training_args.bin").write_text("a pickle, which is left where it is")
    return folder


def test_an_adapter_may_be_a_folder_beside_weights_in_one(registry: Registry, saved: Path, lora: Path):
    settings = EngineSettings(adapter_rank=16)
    base = register_generative(registry, "chat", weights=saved, settings=settings)
    made = register_generative(registry, "chat", adapter=lora, keep=1)
    names = {f"{ADAPTER_FOLDER}/adapter_config.json", f"{ADAPTER_FOLDER}/adapter_model.safetensors"}
    assert set(made.files) == {*base.files, *names}
    assert set(engine_files(made)) == set(made.files) - {SETTINGS}
    prompted = register_generative(registry, "chat", prompt=Prompt(parameters={"temperature": 0}), keep=2)
    assert all(prompted.files[name] == made.files[name] for name in names)


def test_an_adapter_for_which_the_engine_has_no_room_is_refused(registry: Registry, saved: Path, lora: Path):
    register_generative(registry, "chat", weights=saved, settings=EngineSettings(adapter_rank=8))
    with pytest.raises(GenerativeError, match=r"rank is 12, .*room for adapter_rank=8; .*adapter_rank=16\)"):
        register_generative(registry, "chat", adapter=lora, keep=1)
    scaled = EngineSettings(adapter_rank=16, adapter_scale=0.5)
    with pytest.raises(GenerativeError, match=r"adapter_scale: 0\.5 is for adapters as GGUF"):
        register_generative(registry, "chat", adapter=lora, keep=1, settings=scaled)
    (lora / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 8, "rank_pattern": {"q": 600}})
    )
    with pytest.raises(GenerativeError, match=r"rank is 600, and vLLM takes 512 at most"):
        register_generative(registry, "chat", adapter=lora, keep=1)


def test_an_adapter_of_another_kind_than_the_weights_is_refused(
    registry: Registry, saved: Path, lora: Path, weights: Path
):
    with pytest.raises(GenerativeError, match=r"adapter: .* here are weights\.gguf and adapter$"):
        register_generative(registry, "chat", weights=weights, adapter=lora)
    with pytest.raises(GenerativeError, match=r"adapter: .* here are weights and adapter\.gguf$"):
        register_generative(registry, "chat", weights=saved, adapter=weights)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"peft_type": "IA3"}, r"adapter_config\.json, peft_type: .*LORA"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"r": 0}, "json, r:"),
        (None, r"no adapter_model\.safetensors; save the adapter by"),
    ],
)
def test_an_adapter_that_vllm_would_not_load_is_refused(
    registry: Registry, saved: Path, lora: Path, changed: dict[str, Any] | None, reason: str
):
    register_generative(registry, "chat", weights=saved, settings=EngineSettings(adapter_rank=16))
    config = lora / "adapter_config.json"
    if changed is None:
        (lora / "adapter_model.safetensors").unlink()
    else:
        config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    with pytest.raises(GenerativeError, match=f"adapter: .*{reason}"):
        register_generative(registry, "chat", adapter=lora, keep=1)


def test_an_adapter_of_other_weights_is_told_by_its_shapes(tmp_path: Path):
    layer = "model.layers.0.self_attn.q_proj"
    for name in ("weights", "adapter"):
        (tmp_path / name).mkdir()
    save_file({f"{layer}.weight": np.zeros((6, 4), np.float32)}, tmp_path / "weights/model-1.safetensors")

    def check(a: tuple[int, int], b: tuple[int, int], name: str = layer) -> None:
        parts = {"A": np.zeros(a, np.float32), "B": np.zeros(b, np.float32)}
        named = {f"base_model.model.{name}.lora_{part}.weight": values for part, values in parts.items()}
        save_file(named, tmp_path / "adapter/adapter_model.safetensors", {"format": "pt"})
        check_shapes(tmp_path / "weights", tmp_path / "adapter")

    check((2, 4), (6, 2))
    check((2, 9), (9, 2), "model.layers.0.unknown")  # vLLM itself says what it does not know
    with pytest.raises(
        GenerativeError, match=r"q_proj\.lora_A\.weight has shape \[2, 5\], and .* has \[6, 4\]"
    ):
        check((2, 5), (6, 2))
    with pytest.raises(GenerativeError, match=r"q_proj\.lora_B\.weight has shape \[7, 2\]"):
        check((2, 4), (7, 2))
    (tmp_path / "adapter/adapter_model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0no")
    with pytest.raises(GenerativeError, match=r"adapter_model\.safetensors: no file of safetensors"):
        check_shapes(tmp_path / "weights", tmp_path / "adapter")


def _folder(tmp_path: Path) -> Path:
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "x.txt").write_text("x")
    return folder


def test_an_earlier_release_reads_the_settings_but_of_a_version_with_a_newer_one():
    known = {"context_length", "slots", "max_tokens", "adapter_scale"}
    assert json.loads(EngineSettings(slots=2).to_json()).keys() == known
    for name, changed in (
        ("task", EngineSettings(task="embed")),
        ("tool_parser", EngineSettings(tool_parser="llama3_json")),
        ("adapter_rank", EngineSettings(adapter_rank=16)),
        ("idle_s", EngineSettings(idle_s=300)),
        ("share_weights", EngineSettings(share_weights=True)),
    ):
        assert json.loads(changed.to_json()).keys() == known | {name}
        assert EngineSettings.model_validate_json(changed.to_json()) == changed


@pytest.mark.parametrize("name", ["", "--port", "Hermes", "a b"])
def test_a_parser_whose_name_is_none_is_refused(name: str):
    with pytest.raises(ValidationError, match="tool_parser"):
        EngineSettings(tool_parser=name)
