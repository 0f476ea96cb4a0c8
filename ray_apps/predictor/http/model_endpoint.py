"""The HTTP endpoint of one model: the Open Inference Protocol's routes as an ASGI application.

A version's signature is also told as a model configuration of Triton, which perf_analyzer makes its requests from.
Source: https://github.com/triton-inference-server/common, protobuf/model_config.proto
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping
from typing import Any

import orjson

from toque.clusters.telemetry.tracing import mark
from toque.ray_apps.predictor.http.auth import INFER, READ, WORKSPACE, Authenticator
from toque.ray_apps.predictor.http.body import LargeBodies, read_body
from toque.ray_apps.predictor.http.endpoint import JSON, Answer, Endpoint, Request
from toque.ray_apps.predictor.inference.caller import Caller
from toque.ray_apps.predictor.inference.predictor import Predictor
from toque.ray_apps.predictor.protocol.datatypes import SMALL_BYTES
from toque.ray_apps.predictor.protocol.errors import BadRequest, DeadlineExceeded, NotFound
from toque.ray_apps.predictor.protocol.json import (
    MAX_ELEMENTS,
    InferRequest,
    InferResponse,
    decode_request,
    encode_response,
)
from toque.ray_apps.predictor.protocol.protobuf import PROTOBUF, decode_message, encode_message
from toque.ray_apps.predictor.versions.batching import Batching
from toque.ray_apps.predictor.versions.loaded import LoadedVersion
from toque.registry.models.versions import Signature, TensorSpec

ARM = b"x-toque-arm"
"""Header that selects an arm of the traffic split, regardless of the unit."""
_VERSIONED = re.compile(r"/versions/([0-9]{1,9})(/infer|/ready|/stats|/config|)")
_MILLISECOND_DIGITS = 9


class ModelEndpoint(Endpoint):
    """An ASGI application that serves one model below the path where it is mounted.

    auth: admits a request or refuses it, on every route. max_body_bytes: bound on a request's body, unpacked.
    max_in_flight: beyond it requests are refused with 429. large: budget of large bodies, which models may share.
    """

    def __init__(
        self,
        predictor: Predictor,
        auth: Authenticator,
        *,
        max_body_bytes: int = 64 << 20,
        max_in_flight: int = 1_280,
        large: LargeBodies | None = None,
    ) -> None:
        super().__init__(max_in_flight=max_in_flight)
        self.predictor, self.auth = predictor, auth
        self.max_body_bytes = max_body_bytes
        self._large = large or LargeBodies()

    def index(self) -> list[dict[str, str]]:
        """The versions that are loaded, as entries of the repository index."""
        engine = self.predictor.engine
        return [{"name": engine.model, "version": str(number), "state": "READY"} for number in engine.loaded]

    async def close(self) -> None:
        """Close the predictor and its engine."""
        await self.predictor.close()

    async def answer(self, request: Request) -> Answer:
        """Status, headers and body of the answer to one request. Raises: PredictorError."""
        path = request.path
        request.admitted = await self.auth.admit(
            request.headers.get(b"authorization"),
            INFER if path.endswith("/infer") else READ,
            model=self.predictor.engine.model,
            what=f"{request.method} {self.predictor.engine.model}{path}",
            client=request.client,
            workspace=request.headers.get(WORKSPACE),
        )
        mark("token")
        if path == "/infer" and request.method == "POST":
            return await self._infer(request, None)
        if path in {"", "/", "/ready", "/status", "/stats", "/config"}:
            _require_method(request, "GET")
            return self._describe_model(path)
        matched = _VERSIONED.fullmatch(path)
        if matched is None:
            _require_method(request, "POST" if path == "/infer" else request.method)
            raise NotFound(
                f"path: no route {path!r} on a model; see /v2/models/{self.predictor.engine.model}"
            )
        number, action = int(matched[1]), matched[2]
        _require_method(request, "POST" if action == "/infer" else "GET")
        if action == "/infer":
            return await self._infer(request, number)
        return self._describe_version(number, action)

    async def _infer(self, request: Request, number: int | None) -> Answer:
        headers = request.headers
        deadline = _deadline(headers.get(b"x-request-timeout-ms"))
        as_message = headers.get(b"content-type") == PROTOBUF
        try:
            body = await read_body(request, self.max_body_bytes, self._large)
            if len(body) > SMALL_BYTES:
                infer_request, typed = await self._large.run(_decode, body, headers, as_message)
                infer_request.large = True
            else:
                infer_request, typed = _decode(body, headers, as_message)
            del body  # its tensors are copies
            mark("read")
            if number is None and ARM in headers:
                number = self.predictor.pinned(headers[ARM].decode("latin-1"))
            caller = Caller(request.receive, request.write_batch)
            if deadline is None and "timeout" not in infer_request.parameters:
                response: InferResponse = await self.predictor.infer(
                    infer_request, number=number, caller=caller
                )
            else:
                response = await self._infer_in_time(infer_request, number, caller, deadline)
            encode = _encode_message if as_message else _encode_json
            if response.large:
                encoded = await self._large.run(encode, response, infer_request, typed)
            else:
                encoded = encode(response, infer_request, typed)
            mark("encode")
            return encoded
        finally:
            if request.held_bytes:
                self._large.release(request)

    async def _infer_in_time(
        self, request: InferRequest, number: int | None, caller: Caller, deadline: float | None
    ) -> InferResponse:
        """Answer before the earlier of a header's and a parameter's deadline; later work is dropped."""
        deadlines = [at for at in (deadline, _parameter_deadline(request)) if at is not None]
        try:
            async with asyncio.timeout_at(min(deadlines, default=None)):
                return await self.predictor.infer(request, number=number, caller=caller)
        except TimeoutError:
            raise DeadlineExceeded(
                "deadline: it passed before the answer was there; allow more time"
            ) from None

    def _describe_model(self, path: str) -> Answer:
        champion = self.predictor.engine.routes.champion
        if path == "/status":
            return 200, [JSON], orjson.dumps(self.predictor.describe())
        if path == "/stats":
            return 200, [JSON], orjson.dumps(self.predictor.statistics())
        if path == "/ready":
            document = {"name": self.predictor.engine.model, "ready": champion is not None}
            return 200 if champion is not None else 503, [JSON], orjson.dumps(document)
        if champion is None:
            raise NotFound(f"model {self.predictor.engine.model!r} has no champion that is loaded")
        return 200, [JSON], orjson.dumps(_document(self.predictor, champion, path))

    def _describe_version(self, number: int, action: str) -> Answer:
        engine = self.predictor.engine
        version = engine.find(number)
        if action == "/ready":
            document = {"name": engine.model, "version": str(number), "ready": version is not None}
            return 200 if version is not None else 503, [JSON], orjson.dumps(document)
        if action == "/stats":
            return 200, [JSON], orjson.dumps(self.predictor.statistics(number))
        if version is not None:
            return 200, [JSON], orjson.dumps(_document(self.predictor, version, action))
        raise NotFound(
            f"model {engine.model!r} has no version {number} loaded; it has {engine.describe()['loaded']}"
        )


def _document(predictor: Predictor, version: LoadedVersion, path: str) -> dict[str, Any]:
    """The JSON document of `/config`, or else the protocol's metadata."""
    if path == "/config":
        return model_config(predictor.engine.model, version.signature, version.batching)
    return metadata(predictor, version)


def metadata(predictor: Predictor, version: LoadedVersion) -> dict[str, Any]:
    """The protocol's description of a model, from a version's signature."""
    return {
        "name": predictor.engine.model,
        "versions": [str(number) for number in predictor.engine.describe()["loaded"]],
        "platform": "toque",
        "inputs": [_tensor(spec) for spec in version.signature.inputs],
        "outputs": [_tensor(spec) for spec in version.signature.outputs],
        "parameters": {"version": str(version.version), "feature_service": version.service},
    }


def _tensor(spec: Any) -> dict[str, Any]:
    described = {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
    if spec.columns is not None:
        described["parameters"] = {"columns": spec.columns}
    return described


def _decode(
    body: bytes | bytearray,
    headers: Mapping[bytes, bytes],
    as_message: bool,  # noqa: FBT001  # executors pass by position
) -> tuple[InferRequest, bool]:
    """Decode a body; returns the request, and whether it has typed contents."""
    if as_message:
        return decode_message(body)
    return decode_request(body, _header_length(headers.get(b"inference-header-content-length"))), False


def _encode_json(response: InferResponse, request: InferRequest, _typed: bool) -> Answer:  # noqa: FBT001  # as above
    encoded, json_bytes = encode_response(response, request)
    if json_bytes is None:
        return 200, [JSON], encoded
    length = (b"inference-header-content-length", b"%d" % json_bytes)
    return 200, [(b"content-type", b"application/octet-stream"), length], encoded


def _encode_message(response: InferResponse, request: InferRequest, typed: bool) -> Answer:  # noqa: FBT001  # as above
    return 200, [(b"content-type", PROTOBUF)], encode_message(response, request, typed=typed)


def _deadline(value: bytes | None) -> float | None:
    """The deadline of an X-Request-Timeout-Ms header on the loop's clock, or None without one."""
    if value is None:
        return None
    if not value.isdigit() or len(value) > _MILLISECOND_DIGITS or int(value) == 0:
        raise BadRequest(f"X-Request-Timeout-Ms: expected a number of milliseconds > 0, got {value[:40]!r}")
    return asyncio.get_running_loop().time() + int(value) / 1e3


def _parameter_deadline(request: InferRequest) -> float | None:
    """The deadline of `parameters.timeout`, in microseconds from now as Triton's clients send it; None for 0."""
    timeout = request.parameters.get("timeout", 0)
    if type(timeout) is not int or timeout < 0:
        raise BadRequest(f"parameters.timeout: expected microseconds, an integer >= 0, got {timeout!r:.80}")
    return asyncio.get_running_loop().time() + timeout / 1e6 if timeout else None


def _header_length(value: bytes | None) -> int | None:
    if value is None:
        return None
    if not value.isdigit() or len(value) > 12:  # noqa: PLR2004 - digits of any body that is accepted
        raise BadRequest(f"Inference-Header-Content-Length: expected a number of bytes, got {value[:40]!r}")
    return int(value)


def _require_method(request: Request, method: str) -> None:
    if request.method != method and not (method == "GET" and request.method == "HEAD"):
        refusal = BadRequest(f"method: {request.path or '/'} takes {method}, not {request.method}")
        refusal.status = 405
        raise refusal


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
        "input": [_tensor_config(spec, rows_open=rows_open) for spec in signature.inputs],
        "output": [_tensor_config(spec, rows_open=rows_open) for spec in signature.outputs],
    }
    if batching is not None:
        config["dynamic_batching"] = {
            "preferred_batch_size": [batching.max_rows],
            "max_queue_delay_microseconds": int(batching.max_wait_s * 1e6),
        }
    return config


def _max_rows(spec: TensorSpec) -> int:
    return MAX_ELEMENTS // max(1, math.prod(max(1, size) for size in spec.shape[1:]))


def _tensor_config(spec: TensorSpec, *, rows_open: bool) -> dict[str, Any]:
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {
        "name": spec.name,
        "data_type": f"TYPE_{datatype}",
        "dims": spec.shape[1:] if rows_open else spec.shape,
    }


__all__ = ["ModelEndpoint", "metadata", "model_config"]
