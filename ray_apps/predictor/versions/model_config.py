"""A version's signature as a model configuration of Triton, which perf_analyzer makes its requests from.

Source: https://github.com/triton-inference-server/common, protobuf/model_config.proto
"""

from __future__ import annotations

import math
from typing import Any

from toque.ray_apps.predictor.protocol.json import MAX_ELEMENTS
from toque.ray_apps.predictor.versions.batching import Batching
from toque.registry.models.signature import Signature, TensorSpec

__all__ = ["model_config"]


def model_config(model: str, signature: Signature, batching: Batching | None) -> dict[str, Any]:
    """The configuration of a model: tensors with Triton's type names, how many rows a request may have, batching.

    If every tensor's first dimension is open, `max_batch_size` is the number of rows that a request may have, and
    `dims` leave that dimension out, as Triton has it; else it is 0.
    """
    tensors = [*signature.inputs, *signature.outputs]
    rows_open = all(spec.shape[:1] == [-1] for spec in tensors)
    config: dict[str, Any] = {
        "name": model,
        "platform": "toque",
        "backend": "toque",
        "max_batch_size": min(map(_max_rows, tensors)) if rows_open else 0,
        "input": [_tensor(spec, rows_open=rows_open) for spec in signature.inputs],
        "output": [_tensor(spec, rows_open=rows_open) for spec in signature.outputs],
    }
    if batching is not None:
        config["dynamic_batching"] = {
            "preferred_batch_size": [batching.max_rows],
            "max_queue_delay_microseconds": int(batching.max_wait_s * 1e6),
        }
    return config


def _max_rows(spec: TensorSpec) -> int:
    return MAX_ELEMENTS // max(1, math.prod(max(1, size) for size in spec.shape[1:]))


def _tensor(spec: TensorSpec, *, rows_open: bool) -> dict[str, Any]:
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {
        "name": spec.name,
        "data_type": f"TYPE_{datatype}",
        "dims": spec.shape[1:] if rows_open else spec.shape,
    }
