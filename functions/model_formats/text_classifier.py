"""Reading of a Hugging Face folder whose network classifies texts or gives a number of each: config, safetensors and tokenizer.

`transformers` (the extra `llm`) is imported when such a folder is read. No code of the folder runs: a network that `transformers`
itself does not know is refused by it.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toque.functions.model_formats.errors import ArtifactRefused
from toque.registry.models import Signature, TensorSpec

__all__ = [
    "CLASSIFIER_FILE",
    "MOST_TEXTS",
    "fields_of",
    "read_text_classifier",
    "refuse_other_folders",
    "texts_of",
]

CLASSIFIER_FILE = "model.safetensors"
MOST_TEXTS = 2
"""Most columns of texts that a network reads of a row: a text, or a pair of them."""
_KIND = "ForSequenceClassification"
_AT_ONCE = 32  # rows, as all are filled up to the longest of them


def read_text_classifier(path: Path, signature: Signature) -> Any:
    """Read the folder of `path` as a function from inputs to outputs.

    Raises: ArtifactRefused if its network classifies no texts, or its classes or the signature do not fit.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    folder = path.parent
    refuse_other_folders(folder)
    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    found = config.architectures or []
    if not any(name.endswith(_KIND) for name in found):
        raise ArtifactRefused(
            f"{path.name}: config.json says architectures={found}; such a folder is served if its network is one "
            f"…{_KIND}; language models are registered for engines"
        )
    spec, output = _texts_input(signature), _fitting_output(signature, config)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    net: Any = AutoModelForSequenceClassification.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
    ).eval()
    fields = fields_of(net)

    def answer(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        texts, parts = inputs[spec.name], []
        for start in range(0, len(texts), _AT_ONCE):
            columns = texts_of(texts[start : start + _AT_ONCE])
            tokens = tokenizer(*columns, truncation=True, padding=True, return_tensors="pt")
            taken = {name: value for name, value in tokens.items() if name in fields}
            with torch.inference_mode():
                parts.append(_answers(net(**taken).logits, config.problem_type).numpy())
        return {output.name: np.concatenate(parts)}

    return answer


def refuse_other_folders(folder: Path) -> None:
    """Check that a Hugging Face folder names files of its own only. Raises: ArtifactRefused.

    An adapter names the folder of its base, and tables of weights and tokenizers name files, which `transformers` reads wherever they lie.
    """
    if (folder / "adapter_config.json").exists():
        raise ArtifactRefused(
            "adapter_config.json names another folder's weights: merge the adapter into its base, or keep it in a folder of its own"
        )
    for path in (*folder.glob("*.index.json"), folder / "tokenizer_config.json"):
        content = json.loads(path.read_text()) if path.is_file() else {}
        table, tokenizers = content.get("weight_map") or {}, content.get("fast_tokenizer_files") or ()
        outside = sorted(
            {str(name) for name in (*table.values(), *tokenizers) if Path(str(name)).name != name}
        )
        if outside:
            raise ArtifactRefused(f"{path.name} names {outside[:3]}, which are not in its folder")


def fields_of(net: Any) -> tuple[str, ...]:
    """Names of what a network takes; tokenizers give more, such as the number of the text of a pair."""
    return tuple(inspect.signature(net.forward).parameters)


def texts_of(rows: Any) -> list[list[str]]:
    """Columns of texts of rows (rows, 1 or 2); a missing text is an empty one."""
    return [["" if text is None else str(text) for text in column] for column in np.asarray(rows, object).T]


def _answers(logits: Any, problem: str | None) -> Any:
    if problem == "regression":
        return logits
    return logits.sigmoid() if problem == "multi_label_classification" else logits.softmax(-1)


def _texts_input(signature: Signature) -> TensorSpec:
    fits = [each for each in signature.inputs if each.datatype == "BYTES" and len(each.shape) == 2]  # noqa: PLR2004 - rows and columns
    if len(signature.inputs) != 1 or not fits or not 1 <= fits[0].shape[1] <= MOST_TEXTS:
        raise ArtifactRefused(
            f"inputs {[each.name for each in signature.inputs]}: a classifier of texts takes one, BYTES [-1, 1], or [-1, 2] "
            "for pairs of texts"
        )
    return fits[0]


def _fitting_output(signature: Signature, config: Any) -> TensorSpec:
    if len(signature.outputs) != 1:
        raise ArtifactRefused(
            f"outputs {[each.name for each in signature.outputs]}: such a network gives one"
        )
    (output,) = signature.outputs
    names = [config.id2label[number] for number in range(config.num_labels)]
    if output.columns and len(output.columns) > 1 and names != output.columns:
        raise ArtifactRefused(
            f"output {output.name!r} has the classes {output.columns[:5]}, and config.json {names[:5]}: name them alike, in "
            "the order of the network's answer"
        )
    return output
