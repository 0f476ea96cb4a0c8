"""Maps gRPC methods to the HTTP endpoints' JSON documents, and the documents to response messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import orjson
from google.protobuf import json_format  # type: ignore[import-untyped]  # it ships no types

from toque.ray_apps.model_paths import models_path
from toque.ray_apps.predictor.protocol import messages
from toque.ray_apps.predictor.protocol.errors import BadRequest

__all__ = ["DOCUMENTS", "Document", "model_path"]

VERSION_DIGITS: Final = 9


class Document(NamedTuple):
    """The HTTP request behind a gRPC method, and the message that its answer becomes.

    method, path: of the HTTP request for a request message in a workspace. response: the message that the JSON becomes.
    field: of that message, which the JSON is; None if it is the whole. body: of the HTTP request.
    """

    method: str
    path: Callable[[Any, str], str]
    response: Any
    field: str | None = None
    body: Callable[[Any], bytes] = lambda _: b""

    def read(self, body: bytes | bytearray) -> bytes:
        """Encode an HTTP answer's JSON as the message; fields that the protocol does not have are left out."""
        found = orjson.loads(body)
        whole = found if self.field is None else {self.field: found}
        answer = json_format.ParseDict(whole, self.response(), ignore_unknown_fields=True)
        encoded: bytes = answer.SerializeToString()
        return encoded


def model_path(name: str, version: str, workspace: str) -> str:
    """The HTTP path of a model, or of one version of it, in a workspace.

    version: "" leaves it to the traffic policy. Raises: BadRequest naming the field.
    """
    if not name:
        raise BadRequest("model_name: missing; name the model")
    path = f"{models_path(workspace)}/{quote(name, safe='')}"
    if not version:
        return path
    if not (version.isascii() and version.isdigit() and len(version) <= VERSION_DIGITS):
        raise BadRequest(
            f"model_version: versions are numbers, got {version!r:.80}; leave it out for the policy's"
        )
    return f"{path}/versions/{version}"


def _below(suffix: str) -> Callable[[Any, str], str]:
    return lambda request, workspace: model_path(request.name, request.version, workspace) + suffix


def _index_body(request: Any) -> bytes:
    return orjson.dumps({"ready": request.ready})


DOCUMENTS: Final[Mapping[str, Document]] = {
    "ServerMetadata": Document("GET", lambda *_: "/v2", messages.ServerMetadataResponse),
    "ModelMetadata": Document("GET", _below(""), messages.ModelMetadataResponse),
    "ModelConfig": Document("GET", _below("/config"), messages.ModelConfigResponse, "config"),
    "ModelStatistics": Document("GET", _below("/stats"), messages.ModelStatisticsResponse),
    "RepositoryIndex": Document(
        "POST", lambda *_: "/v2/repository/index", messages.RepositoryIndexResponse, "models", _index_body
    ),
}
"""The methods that answer with a document of the HTTP endpoints."""
