"""The protocol's gRPC messages as Python classes, made from `open_inference.proto`.

They live in a descriptor pool of their own: a process may use another package that brings the same messages
(tritonclient does), and in one pool the two would be refused as duplicates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from google.protobuf import (  # type: ignore[import-untyped]  # it ships no types
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)

__all__ = [
    "METHODS",
    "SERVICE",
    "InferParameter",
    "ModelConfigResponse",
    "ModelInferRequest",
    "ModelInferResponse",
    "ModelMetadataResponse",
    "ModelReadyResponse",
    "ModelStatisticsResponse",
    "ModelStreamInferResponse",
    "RepositoryIndexResponse",
    "ServerLiveResponse",
    "ServerMetadataResponse",
    "ServerReadyResponse",
]

DESCRIPTION = Path(__file__).with_name("open_inference.binpb")
SERVICE: Final = "inference.GRPCInferenceService"


def _load() -> dict[str, Any]:
    """Load the message classes by full name, and the service's descriptor by its own."""
    pool = descriptor_pool.DescriptorPool()
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTION.read_bytes()).file
    pool.Add(file)
    classes: dict[str, Any] = message_factory.GetMessageClassesForFiles([file.name], pool)
    return classes | {SERVICE: pool.FindServiceByName(SERVICE)}


_found = _load()
InferParameter: Any = _found["inference.InferParameter"]
ModelConfigResponse: Any = _found["inference.ModelConfigResponse"]
ModelInferRequest: Any = _found["inference.ModelInferRequest"]
ModelInferResponse: Any = _found["inference.ModelInferResponse"]
ModelMetadataResponse: Any = _found["inference.ModelMetadataResponse"]
ModelReadyResponse: Any = _found["inference.ModelReadyResponse"]
ModelStatisticsResponse: Any = _found["inference.ModelStatisticsResponse"]
ModelStreamInferResponse: Any = _found["inference.ModelStreamInferResponse"]
RepositoryIndexResponse: Any = _found["inference.RepositoryIndexResponse"]
ServerLiveResponse: Any = _found["inference.ServerLiveResponse"]
ServerMetadataResponse: Any = _found["inference.ServerMetadataResponse"]
ServerReadyResponse: Any = _found["inference.ServerReadyResponse"]

METHODS: Final[dict[str, Any]] = {
    method.name: _found[method.input_type.full_name] for method in _found[SERVICE].methods
}
"""The class of a method's request, by the method's name."""
