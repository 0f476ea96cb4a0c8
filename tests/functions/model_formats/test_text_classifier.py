"""A Hugging Face folder names files of its own, or is refused before `transformers` reads it."""

import json
from pathlib import Path
from typing import Any

import pytest

from toque.functions.evaluation.language.likelihood import read_model
from toque.functions.model_formats.errors import ArtifactRefused
from toque.functions.model_formats.text_classifier import read_text_classifier, refuse_other_folders
from toque.registry import Signature, TensorSpec

SIGNATURE = Signature(
    inputs=[TensorSpec(name="text", datatype="BYTES", shape=[-1, 1])],
    outputs=[TensorSpec(name="p", datatype="FP32", shape=[-1, 1])],
)
OUTSIDE: dict[str, tuple[str, dict[str, Any]]] = {
    "adapter": ("adapter_config.json", {"base_model_name_or_path": "/another/team/model"}),
    "shard": ("model.safetensors.index.json", {"weight_map": {"w": "../other/model.safetensors"}}),
    "absolute shard": ("model.safetensors.index.json", {"weight_map": {"w": "/other/model.safetensors"}}),
    "tokenizer": ("tokenizer_config.json", {"fast_tokenizer_files": ["../../tokenizer.1.0.json"]}),
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_a_folder_that_names_files_outside_it_is_not_read(case: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    name, content = OUTSIDE[case]
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ArtifactRefused, match=name):
        read_text_classifier(tmp_path / "model.safetensors", SIGNATURE)
    with pytest.raises(ArtifactRefused, match=name):
        read_model(tmp_path)


def test_a_folder_of_several_files_of_its_own_is_read(tmp_path: Path) -> None:
    shards = {
        "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(shards))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"fast_tokenizer_files": ["tokenizer.4.0.json"]})
    )
    refuse_other_folders(tmp_path)
