"""Let a language model learn this repository's notes, from SmolLM2 by adapters or from random weights.

python -m examples.gpt.tune --gguf SmolLM2-135M-Instruct.Q4_1.gguf --sections 24    # minutes on two cores
python -m examples.gpt.tune --gguf SmolLM2-135M-Instruct.Q4_1.gguf --scratch        # its tokenizer and family, random weights
python -m examples.gpt.tune --folder smollm2/ --workers 2 --sharding shard --gpus 1 --precision bf16

Each ends as the next version of `notes-llm`, a Hugging Face folder. What began with a GGUF file is the next version of `notes-chat`
as well, which the door of language models serves: the file with an adapter, or from scratch whole weights.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from examples.gpt.recipe import notes
from toque.functions.generative import register_generative
from toque.functions.runtime.context import Context, context
from toque.functions.training import (
    Lora,
    RecipeParams,
    Trained,
    TrainingDataError,
    fine_tune,
    serve_fine_tune,
)
from toque.functions.training.llm.job import SIGNATURE
from toque.registry import AlreadyExists, ModelVersion, Table

MODEL, BASE, SERVED, ROWS = "notes-llm", "notes-base", "notes-chat", "training/notes"


def main() -> None:
    """Train as the command line says; what cannot be learnt ends the command with a line that says why."""
    try:
        _run(_parser().parse_args())
    except TrainingDataError as error:
        raise SystemExit(f"examples.gpt.tune: {error}") from error


def _run(given: argparse.Namespace) -> None:
    """Register the base, train on the notes, and print what came of it."""
    texts = sections(given.sections)  # first, as reading the base takes a minute
    if given.workers > 1 and not ray.is_initialized():
        ray.init(log_to_driver=False)
    with tempfile.TemporaryDirectory(prefix="notes-base-") as place:
        folder = from_gguf(given.gguf, Path(place) / "base") if given.gguf else given.folder
        if given.scratch:
            folder = from_scratch(folder, Path(place) / "scratch", width=given.width, layers=given.layers)
        trained = tune(
            context(),
            folder,
            texts,
            lora=None if given.scratch else Lora(rank=given.rank),
            length=given.length,
            params=RecipeParams(
                lr=given.lr,
                epochs=given.epochs,
                batch_size=given.batch,
                precision=given.precision,
                recompute=True,
            ),
            num_workers=given.workers,
            worker_gpus=given.gpus,
            sharding=given.sharding,
        )
    sys.stdout.write(
        f"{MODEL}@{trained.version}: {trained.metrics['valid_loss']:.3f} nats a token held out, {trained.seconds:.1f} s\n"
    )
    if given.gguf:
        made = served(context(), given.gguf, trained, whole=given.scratch)
        sys.stdout.write(
            f"{SERVED}@{made.version} is served once you say: toque promote {SERVED} {made.version}\n"
        )


def tune(here: Context, folder: Path, texts: Sequence[str], **settings: Any) -> Trained:
    """Register a folder as the base, write texts as a training set, and train. settings: arguments of `fine_tune`."""
    registry = here.registry()
    with suppress(AlreadyExists):
        registry.create_model(BASE)
    base = registry.create_version(BASE, folder, signature=SIGNATURE)
    rows = Table(here.store, ROWS).overwrite(pa.table({"text": texts}))
    return fine_tune(MODEL, f"{BASE}@{base.version}", rows, column="text", **settings)


def served(here: Context, gguf: Path, trained: Trained, *, whole: bool) -> ModelVersion:
    """Register what was learnt at the door of language models, beside a version of the file that it began with.

    whole: all weights, not an adapter beside the file's.
    """
    registry = here.registry()
    with gguf.open("rb") as file:
        key = hashlib.file_digest(file, "sha256").hexdigest()  # a second run finds the version of the first
    base = register_generative(registry, SERVED, weights=gguf, key=key)
    assert trained.version is not None  # noqa: S101 - it was registered
    return serve_fine_tune(
        SERVED, base.version, MODEL, trained.version, form="weights" if whole else "adapter"
    )


def sections(count: int | None = None) -> list[str]:
    """Cut the notes at their headings into texts. count: how many of them, from all over the notes; None: all.

    Raises: TrainingDataError if count is below 1.
    """
    if count is not None and count < 1:
        raise TrainingDataError(
            f"sections: {count} of them teach nothing; give at least 1, or leave it out for all"
        )
    found = [f"## {part}".strip() for part in notes().decode().split("\n## ")]
    kept = len(found) if count is None else min(count, len(found))
    return [found[number * len(found) // kept] for number in range(kept)]


def from_gguf(file: Path, folder: Path) -> Path:
    """Write a GGUF file of llama.cpp as a Hugging Face folder, its weights in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer  # late: the extra `llm`

    net: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    if hasattr(net.config, "quantization_config"):
        del net.config.quantization_config
        net.hf_quantizer = None  # its weights are plain numbers by now; with it, they would not be written
    net.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    return folder


def from_scratch(like: Path, folder: Path, *, width: int, layers: int) -> Path:
    """Write a folder with the tokenizer and family of another, and random weights of other sizes."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # late: the extra `llm`

    config = AutoConfig.from_pretrained(like)
    heads = max(1, width // 64)
    sizes = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "head_dim": width // heads,
    }
    config.update({**sizes, "num_attention_heads": heads, "num_key_value_heads": heads})
    made: Any = AutoModelForCausalLM
    made.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(like).save_pretrained(folder)
    return folder


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="examples.gpt.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--gguf", type=Path, help="file of llama.cpp to begin with")
    source.add_argument("--folder", type=Path, help="Hugging Face folder to begin with")
    parser.add_argument(
        "--scratch", action="store_true", help="random weights, only tokenizer and family are kept"
    )
    parser.add_argument("--width", type=int, default=256, help="of a model from scratch")
    parser.add_argument("--layers", type=int, default=4, help="of a model from scratch")
    parser.add_argument("--sections", type=int, help="of the notes that are learnt (default: all)")
    parser.add_argument("--rank", type=int, default=8, help="of the adapters")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8, help="rows of a step, over all workers")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--workers", type=int, default=1, help="more than one train on the Ray cluster")
    parser.add_argument("--gpus", type=float, default=0.0, help="of each worker")
    parser.add_argument("--sharding", choices=("replicate", "shard"), default="replicate")
    return parser


if __name__ == "__main__":
    main()
