"""Fine-tunes as GGUF files, read back by transformers, which has a reader of its own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from toque.functions.generative import (
    ADAPTER,
    ADAPTER_FOLDER,
    WEIGHTS,
    EngineSettings,
    read_settings,
    register_generative,
)
from toque.functions.training import TrainingDataError, serve_fine_tune
from toque.registry import Lineage, Signature, TableSnapshot, TensorSpec

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")
pytest.importorskip("peft")

SIZES = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
HEADS, KEYS = 4, 2
TEXT = {"datatype": "BYTES", "shape": [-1, 1]}
SIGNATURE = Signature(
    inputs=[TensorSpec.model_validate({"name": "prompt", **TEXT})],
    outputs=[TensorSpec.model_validate({"name": "text", **TEXT})],
)


def network(seed: int, **sizes: int):
    torch.manual_seed(seed)
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KEYS}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{**SIZES, **heads, "tie_word_embeddings": True, **sizes})
    )


def write_base(to: Path, net, *, kind="F32", architecture: str = "llama") -> None:
    """A GGUF file as llama.cpp's converter would write it: rows of queries and keys by pairs that are turned together."""
    writer = gguf.GGUFWriter(to, architecture)
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_layer_norm_rms_eps(net.config.rms_norm_eps)
    writer.add_rope_freq_base(net.config.rope_parameters["rope_theta"])
    writer.add_vocab_size(64)
    writer.add_rope_dimension_count(16)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{number}" for number in range(64)])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, weight in net.state_dict().items():
        if name == "lm_head.weight":
            continue
        value = weight.numpy()
        for part, heads in (("q_proj", HEADS), ("k_proj", KEYS)):
            if part in name:
                order = [
                    head * 16 + half * 8 + place
                    for head in range(heads)
                    for place in range(8)
                    for half in (0, 1)
                ]
                value = value[order]
        found = gguf.GGMLQuantizationType.F32 if value.ndim == 1 else gguf.GGMLQuantizationType[kind]
        packed = gguf.quants.quantize(np.ascontiguousarray(value), found)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), packed, raw_dtype=found)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def door(context, tmp_path):
    """A language model `door` of which version 1 is the base."""
    base = network(0)
    write_base(tmp_path / "base.gguf", base)
    register_generative(context.registry(), "door", weights=tmp_path / "base.gguf")
    return base


def register(context, folder: Path, net, adapter: dict[str, torch.Tensor] | None = None):
    """Register a fine-tune as `fine_tune` does."""
    net.save_pretrained(folder)
    if adapter is not None:
        (folder / "adapter").mkdir()
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8.0}
        (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
        safetensors.save_file(adapter, folder / "adapter" / "adapter_model.safetensors")
    registry = context.registry()
    registry.create_model("tuned", exist_ok=True)
    lineage = Lineage(datasets=[TableSnapshot(name="training/rows", version=3)])
    return registry.create_version(
        "tuned", folder, signature=SIGNATURE, lineage=lineage, tags={"base": "base@1"}
    ).version


@pytest.mark.parametrize("kind", ["F32", "Q4_1"])
def test_whole_weights_are_read_back_as_they_were(context, tmp_path, kind):
    registry = context.registry()
    write_base(tmp_path / "base.gguf", network(0), kind=kind)
    register_generative(registry, "door", weights=tmp_path / "base.gguf")
    tuned = network(1)
    version = register(context, tmp_path / "tuned", tuned)
    made = serve_fine_tune("door", 1, "tuned", version, form="weights")
    assert made.lineage.parent == 1
    assert made.lineage.datasets == [TableSnapshot(name="training/rows", version=3)]
    folder = registry.download("door", made.version, tmp_path / "out", paths=[WEIGHTS])
    again = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=WEIGHTS, dtype=torch.float32)
    tolerance = 0 if kind == "F32" else 0.002  # 8 bits of weights up to about .1
    for name, weight in tuned.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight, rtol=0, atol=tolerance)


def test_a_network_of_other_sizes_has_the_base_s_vocabulary_alone(context, door, tmp_path):
    registry = context.registry()
    sizes = {"hidden_size": 96, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 3}
    other = network(1, **sizes, num_key_value_heads=1, head_dim=48, tie_word_embeddings=False)
    made = serve_fine_tune("door", 1, "tuned", register(context, tmp_path / "tuned", other), form="weights")
    folder = registry.download("door", made.version, tmp_path / "out", paths=[WEIGHTS])
    fields = gguf.GGUFReader(folder / WEIGHTS).fields
    assert fields["tokenizer.ggml.tokens"].contents(63) == "t63"
    again = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=WEIGHTS, dtype=torch.float32)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(tokens).logits, other(tokens).logits)


def test_an_adapter_comes_beside_the_weights_that_it_changes(context, door, tmp_path):
    registry = context.registry()
    rng = torch.Generator().manual_seed(5)
    first, second = torch.randn(2, 64, generator=rng), torch.randn(64, 2, generator=rng)
    layer = "base_model.model.model.layers.1.self_attn.q_proj"
    adapter = {f"{layer}.lora_A.weight": first, f"{layer}.lora_B.weight": second}
    version = register(context, tmp_path / "tuned", door, adapter)
    made = serve_fine_tune("door", 1, "tuned", version)
    assert made.files[WEIGHTS] == registry.get_version("door", 1).files[WEIGHTS]
    file = registry.download("door", made.version, tmp_path / "out", paths=[ADAPTER]) / ADAPTER
    reader = gguf.GGUFReader(file)
    said = {name: field.contents() for name, field in reader.fields.items()}
    assert (said["general.type"], said["adapter.type"], said["adapter.lora.alpha"]) == ("adapter", "lora", 8)
    found = {each.name: each.data for each in reader.tensors}
    assert set(found) == {"blk.1.attn_q.weight.lora_a", "blk.1.attn_q.weight.lora_b"}
    merged = network(0)  # where whole weights go, the adapter's rows go too
    with torch.no_grad():
        merged.model.layers[1].self_attn.q_proj.weight.copy_(second @ first)
    write_base(tmp_path / "merged.gguf", merged)
    turned = {each.name: each.data for each in gguf.GGUFReader(tmp_path / "merged.gguf").tensors}
    together = found["blk.1.attn_q.weight.lora_b"] @ found["blk.1.attn_q.weight.lora_a"]
    np.testing.assert_allclose(together, turned["blk.1.attn_q.weight"], rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused(context, door, tmp_path):
    registry = context.registry()
    whole = register(context, tmp_path / "whole", door)
    with pytest.raises(TrainingDataError, match="say form='weights'"):
        serve_fine_tune("door", 1, "tuned", whole)
    with pytest.raises(TrainingDataError, match="no version of a language model"):
        serve_fine_tune("tuned", whole, "tuned", whole)
    other = network(1)
    with torch.no_grad():
        other.model.norm.weight.mul_(1.5)
    layer = "base_model.model.model.layers.0.mlp.up_proj"
    adapter = {f"{layer}.lora_A.weight": torch.ones(2, 64), f"{layer}.lora_B.weight": torch.ones(96, 2)}
    strange = register(context, tmp_path / "strange", other, adapter)
    with pytest.raises(TrainingDataError, match=r"is not the base of this fine-tune: 'output_norm\.weight'"):
        serve_fine_tune("door", 1, "tuned", strange)
    write_base(tmp_path / "phi.gguf", door, architecture="phi3")
    register_generative(registry, "phi", weights=tmp_path / "phi.gguf")
    with pytest.raises(TrainingDataError, match="of the architecture 'phi3'"):
        serve_fine_tune("phi", 1, "tuned", whole, form="weights")
    short = {f"{layer}.lora_A.weight": torch.ones(2, 63), f"{layer}.lora_B.weight": torch.ones(96, 2)}
    wrong = register(context, tmp_path / "wrong", door, short)
    with pytest.raises(TrainingDataError, match="the adapter reads 63"):
        serve_fine_tune("door", 1, "tuned", wrong)
    for name, sizes, said in (
        ("words", {"vocab_size": 60}, r"vocab_size is 60, and weights\.gguf has 64 tokens"),
        (
            "biased",
            {"attention_bias": True},
            r"no place for the fine-tune's weights \['blk\.0\.attn_k\.bias'",
        ),
    ):
        version = register(context, tmp_path / name, network(1, **sizes))
        with pytest.raises(TrainingDataError, match=said):
            serve_fine_tune("door", 1, "tuned", version, form="weights")
    other = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=64, n_embd=8, n_layer=1, n_head=1)
    )
    version = register(context, tmp_path / "gpt2", other)
    with pytest.raises(TrainingDataError, match=r"config\.json has no 'hidden_size'"):
        serve_fine_tune("door", 1, "tuned", version, form="weights")


@pytest.fixture
def folder_door(context, tmp_path):
    """A language model `vllm` whose version 1 has the weights of the base as a folder."""
    base = network(0)
    base.save_pretrained(tmp_path / "weights")
    registry = context.registry()
    registry.create_model("base")
    registry.create_version("base", tmp_path / "weights", signature=SIGNATURE)
    settings = EngineSettings(adapter_rank=8, context_length=64)
    register_generative(registry, "vllm", weights=tmp_path / "weights", settings=settings)
    return base


ADAPTED = "base_model.model.model.layers.0.mlp.up_proj"
MATRICES = {f"{ADAPTED}.lora_A.weight": torch.ones(2, 64), f"{ADAPTED}.lora_B.weight": torch.ones(96, 2)}


def test_an_adapter_comes_beside_the_folder_that_it_began_with(context, folder_door, tmp_path):
    registry = context.registry()
    version = register(context, tmp_path / "tuned", network(1), MATRICES)
    made = serve_fine_tune("vllm", 1, "tuned", version)
    files = registry.get_version("vllm", 1).files
    assert files.items() <= made.files.items()
    assert made.files.keys() - files.keys() == {
        f"{ADAPTER_FOLDER}/adapter_config.json", f"{ADAPTER_FOLDER}/adapter_model.safetensors"
    }  # fmt: skip
    assert made.lineage.parent == 1
    network(2).save_pretrained(tmp_path / "other")
    register_generative(registry, "vllm", weights=tmp_path / "other")
    with pytest.raises(TrainingDataError, match="its weights are not those of base@1"):
        serve_fine_tune("vllm", made.version + 1, "tuned", version)
    with pytest.raises(TrainingDataError, match="it has an adapter"):
        serve_fine_tune("vllm", made.version, "tuned", version, form="weights")


def test_a_whole_folder_comes_with_what_the_version_has_beside_its_weights(context, folder_door, tmp_path):
    registry = context.registry()
    version = register(context, tmp_path / "tuned", network(1))
    made = serve_fine_tune("vllm", 1, "tuned", version, form="weights")
    folder = registry.download("vllm", made.version, tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(folder / "weights")
    torch.testing.assert_close(again.state_dict(), network(1).state_dict())
    assert read_settings(folder).context_length == 64
