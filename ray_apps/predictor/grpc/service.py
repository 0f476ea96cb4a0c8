"""GRPCInferenceService: checks each call's token, reads its message and forwards it to the model's HTTP endpoint.

All handlers take a stream of raw bytes, those of unary methods too: so nothing of a call is read or parsed before its
token was accepted, and the wait for a message is bounded. Calls take places, so that a part of a server's memory is
bounded, for all callers and for each.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, Self
from urllib.parse import quote

import grpc
import orjson
from google.protobuf import json_format  # type: ignore[import-untyped]  # it ships no types
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it ships no types

from toque.clusters.telemetry.tracing import mark
from toque.ray_apps.admission.admission import ANY_MODEL, Rule
from toque.ray_apps.model_paths import models_path
from toque.ray_apps.predictor.grpc.call import (
    Call,
    HttpRefusal,
    Limits,
    Refusal,
    UnreachableError,
    http_status_of,
    refusal_of,
)
from toque.ray_apps.predictor.http.auth import INFER, READ, WORKSPACE, Authenticator
from toque.ray_apps.predictor.http.body import LargeBodies
from toque.ray_apps.predictor.http.endpoint import JSON, Answer
from toque.ray_apps.predictor.protocol import protobuf
from toque.ray_apps.predictor.protocol.datatypes import SMALL_BYTES
from toque.ray_apps.predictor.protocol.errors import BadRequest, Overloaded, PredictorError, TooLarge
from toque.ray_apps.predictor.protocol.protobuf import (
    METHODS,
    PROTOBUF,
    SERVICE,
    ModelInferRequest,
    ModelInferResponse,
    ModelReadyResponse,
    ModelStreamInferResponse,
    ServerLiveResponse,
    ServerReadyResponse,
    length_delimited,
    parse_message,
)

_NO_SHARED_MEMORY: Final = "the models may be on other machines; send tensors in the message"
UNSERVED: Final = {
    "RepositoryModelLoad": "a model's traffic policy says what is loaded",
    "RepositoryModelUnload": "a model's traffic policy says what is loaded",
    "SystemSharedMemoryStatus": _NO_SHARED_MEMORY,
    "SystemSharedMemoryRegister": _NO_SHARED_MEMORY,
    "SystemSharedMemoryUnregister": _NO_SHARED_MEMORY,
    "CudaSharedMemoryStatus": _NO_SHARED_MEMORY,
    "CudaSharedMemoryRegister": _NO_SHARED_MEMORY,
    "CudaSharedMemoryUnregister": _NO_SHARED_MEMORY,
    "TraceSetting": "traces are switched on by the platform's configuration",
    "LogSettings": "logs are set by the platform's configuration",
}
"""Methods of Triton that are refused as UNIMPLEMENTED, and why."""
_OK, _NOT_FOUND, _UNAVAILABLE = 200, 404, 503
_DENIED: Final = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
_NO_MESSAGE: Final = "message: missing; a call has one"
_INFER_RESPONSE: Final = 2  # field of ModelStreamInferResponse
VERSION_DIGITS: Final = 9
Method = Callable[[Call], Awaitable[bytes]]
"""Answers a call with the bytes of a message; an exception becomes the caller's refusal."""


class Models(Protocol):
    """The HTTP endpoints of all models."""

    async def request(
        self, method: str, path: str, headers: Mapping[bytes, bytes], body: bytes = b"", /
    ) -> Answer:
        """Send an HTTP request, and return the answer; path: quoted. Raises: UnreachableError without an answer."""
        ...

    async def close(self) -> None:
        """Close the connections to the endpoints."""
        ...


class NotServed(PredictorError):  # noqa: N818 - an answer, as those of `errors`
    """The gRPC method is not served: 501."""

    status = 501


def make_handler(models: Models, auth: Authenticator, limits: Limits) -> Any:
    """Make the service's handler for a grpc.aio server.

    auth: accepts a call's token before its message is read. Health needs no token, and its messages are not read.
    """
    service = _Service(models, auth, limits)
    methods: dict[str, Method] = {
        "ServerLive": service.live,
        "ServerReady": service.ready,
        "ModelReady": service.model_ready,
        "ModelInfer": service.infer,
        **{name: partial(service.look_up, name, document) for name, document in DOCUMENTS.items()},
        **{name: partial(service.refuse, name, reason) for name, reason in UNSERVED.items()},
    }
    handlers = {name: _unary(name, method) for name, method in methods.items()}
    handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(service.infer_stream)
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


def _unary(name: str, method: Method) -> Any:
    """Make a handler of raw bytes, which aborts a call whose method raises, with the status of the refusal."""

    async def handle(requests: AsyncIterator[bytes], context: Any) -> bytes:
        call, status = Call(requests, context), _OK
        trace = call.begin_trace()
        try:
            return await method(call)
        except Exception as error:  # noqa: BLE001 - the caller is told the incident, the log the rest
            refusal, status = refusal_of(error), http_status_of(error)
        finally:
            trace.finish("gRPC", name, status)
        await _abort(context, refusal._replace(metadata=call.as_sent(refusal.metadata)))
        raise AssertionError  # abort has raised

    return grpc.stream_unary_rpc_method_handler(handle)


async def _abort(context: Any, refusal: Refusal) -> None:
    await context.abort(refusal.code, refusal.message, trailing_metadata=refusal.metadata)


class _Service:
    """The implementations of the service's methods."""

    def __init__(self, models: Models, auth: Authenticator, limits: Limits) -> None:
        self._models, self._auth, self._limits = models, auth, limits
        self._reads = Turns(limits.max_reads, limits.max_reads_of_caller)
        self._streams = Turns(limits.max_open_streams, limits.max_open_streams_of_caller)
        self._large = LargeBodies(limits.max_held_bytes)

    async def live(self, _call: Call) -> bytes:
        return _bytes_of(ServerLiveResponse(live=True))

    async def ready(self, call: Call) -> bytes:
        try:
            status, _, _ = await self._models.request("GET", "/v2/health/ready", call.headers())
        except UnreachableError:
            status = _UNAVAILABLE
        return _bytes_of(ServerReadyResponse(ready=status == _OK))

    async def model_ready(self, call: Call) -> bytes:
        request, workspace = await self._request(call, METHODS["ModelReady"])
        path = f"{model_path(request.name, request.version, workspace)}/ready"
        answer = await self._models.request("GET", path, call.headers())
        if answer[0] not in {_OK, _NOT_FOUND, _UNAVAILABLE}:
            raise HttpRefusal(answer)
        return _bytes_of(ModelReadyResponse(ready=answer[0] == _OK))

    async def look_up(self, name: str, document: Document, call: Call) -> bytes:
        """Answer with a document of the HTTP endpoints."""
        request, workspace = await self._request(call, METHODS[name])
        headers = {**call.headers(), JSON[0]: JSON[1], WORKSPACE: workspace.encode()}
        path, content = document.path(request, workspace), document.body(request)
        _, _, body = _successful(await self._models.request(document.method, path, headers, content))
        return document.read(body)

    async def refuse(self, name: str, reason: str, call: Call) -> bytes:
        await self._admit(call, READ, name)
        raise NotServed(f"{name} is not served: {reason}")

    async def infer(self, call: Call) -> bytes:
        workspace = await self._admit(call, INFER, "ModelInfer")
        try:
            mark("token")
            message = await self._read(call)
            mark("read")
            _, headers, body = await self._infer(call, message, _routed(message), workspace)
        finally:
            self._large.release(call)
        call.return_headers(headers)
        return bytes(body)

    async def infer_stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Answer each message before the next is read; refusals are answers too, except those of the token."""
        call = Call(requests, context)
        try:
            await self._admit(call, INFER, "ModelStreamInfer")
            with self._streams.take(call.authorization, "streams"):
                while (message := await call.next_message(self._limits.idle_s)) is not None:
                    yield await self._infer_one(call, message)
        except Exception as error:  # noqa: BLE001 - as of a unary call
            await _abort(context, refusal_of(error))

    async def _infer_one(self, call: Call, message: bytes) -> bytes:
        """Answer one message of a stream. Raises: Denied, HttpRefusal if the token was revoked meanwhile."""
        workspace = await self._admit(call, INFER, "ModelStreamInfer")
        request = ModelInferRequest()
        try:
            self._hold(call, message)
            request = _routed(message)
            _, _, body = await self._infer(call, message, request, workspace)
        except Exception as error:
            refusal = refusal_of(error)
            if refusal.code in _DENIED:
                raise
            unanswered = ModelInferResponse(id=request.id)
            return _bytes_of(
                ModelStreamInferResponse(error_message=refusal.message, infer_response=unanswered)
            )
        finally:
            self._large.release(call)
        return length_delimited(_INFER_RESPONSE, len(body)) + body

    async def _infer(self, call: Call, message: bytes | None, request: Any, workspace: str) -> Answer:
        """Forward a message, which was parsed here for the model's name alone, to the model's own endpoint."""
        path = f"{model_path(request.model_name, request.model_version, workspace)}/infer"
        headers = {**call.headers(), b"content-type": PROTOBUF}
        return _successful(await self._models.request("POST", path, headers, message or b""))

    async def _admit(self, call: Call, rule: Rule, what: str) -> str:
        """Check a call's token before a message is read; returns the workspace.

        The model's endpoint applies the caller's limits.
        """
        admitted = await self._auth.admit(
            call.authorization, rule, model=ANY_MODEL, what=f"gRPC {what}", client=call.client,
            workspace=call.workspace,
        )  # fmt: skip
        admitted.release()
        return admitted.workspace

    async def _request(self, call: Call, request_class: Any) -> tuple[Any, str]:
        """Check a call's token, and parse its message; returns it and the workspace."""
        workspace = await self._admit(call, READ, request_class.DESCRIPTOR.name)
        message = await self._read(call, most_bytes=SMALL_BYTES)
        self._large.release(call)
        return _parsed(request_class, message), workspace

    async def _read(self, call: Call, most_bytes: int | None = None) -> bytes | None:
        """Read a call's message when it is its turn. Raises: DeadlineExceeded, Overloaded, TooLarge."""
        loop = asyncio.get_running_loop()
        late = loop.time() + self._limits.message_s  # with the wait for a turn, or a call took twice as long
        with await self._turn(call):
            message = await call.next_message(late - loop.time())
        if message is not None and most_bytes is not None and len(message) > most_bytes:
            raise TooLarge(f"message: {len(message)} bytes; at most {most_bytes} are accepted")
        self._hold(call, message)
        return message

    async def _turn(self, call: Call) -> Turn:
        try:
            async with asyncio.timeout(self._limits.message_s):
                return await self._reads.wait(call.authorization)
        except TimeoutError:
            raise Overloaded("message: too many others are being received; call again") from None

    def _hold(self, call: Call, message: bytes | None) -> None:
        if message is not None and len(message) > SMALL_BYTES:
            self._large.take(call, len(message))


def _routed(message: bytes | None) -> Any:
    """Parse a request for its model, version and id. Raises: BadRequest, TooLarge."""
    if message is None:
        raise BadRequest(_NO_MESSAGE)
    return parse_message(message)[0]


def _parsed(request_class: Any, message: bytes | None) -> Any:
    if message is None:
        raise BadRequest(_NO_MESSAGE)
    try:
        return request_class.FromString(message)
    except DecodeError as error:
        raise BadRequest(f"message: not a {request_class.DESCRIPTOR.name}: {error}") from None


def _successful(answer: Answer) -> Answer:
    if answer[0] != _OK:
        raise HttpRefusal(answer)
    return answer


def _bytes_of(message: Any) -> bytes:
    encoded: bytes = message.SerializeToString()
    return encoded


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
    "ServerMetadata": Document("GET", lambda *_: "/v2", protobuf.ServerMetadataResponse),
    "ModelMetadata": Document("GET", _below(""), protobuf.ModelMetadataResponse),
    "ModelConfig": Document("GET", _below("/config"), protobuf.ModelConfigResponse, "config"),
    "ModelStatistics": Document("GET", _below("/stats"), protobuf.ModelStatisticsResponse),
    "RepositoryIndex": Document(
        "POST", lambda *_: "/v2/repository/index", protobuf.RepositoryIndexResponse, "models", _index_body
    ),
}
"""The methods that answer with a document of the HTTP endpoints."""


class Turns:
    """Places of which each caller may have a part. Belongs to one event loop.

    total, of_caller: places for all calls, and for those of one caller.
    """

    def __init__(self, total: int, of_caller: int) -> None:
        self.total, self.of_caller = total, of_caller
        self.taken: Counter[bytes | None] = Counter()
        self.count = 0
        self.waiting: set[asyncio.Future[None]] = set()

    def take(self, caller: bytes | None, what: str) -> Turn:
        """Take a place, to be left at the end of a `with` block. what: for the message.

        Raises: Overloaded if there is none.
        """
        if not self.has_room(caller):
            raise Overloaded(
                f"{what}: {self.taken[caller]} are open by this token and {self.count} in all, of at most "
                f"{self.of_caller} and {self.total}; end one first"
            )
        return Turn(self, caller)

    async def wait(self, caller: bytes | None) -> Turn:
        """Wait for a place and take it, to be left at the end of a `with` block."""
        while not self.has_room(caller):
            freed = asyncio.get_running_loop().create_future()
            self.waiting.add(freed)
            try:
                await freed
            finally:
                self.waiting.discard(freed)
        return Turn(self, caller)

    def has_room(self, caller: bytes | None) -> bool:
        """Whether there is a place for one more call of this caller."""
        return self.count < self.total and self.taken[caller] < self.of_caller


class Turn:
    """A place that a call has, until the `with` block around its use ends."""

    __slots__ = ("_caller", "_turns")

    def __init__(self, turns: Turns, caller: bytes | None) -> None:
        self._turns, self._caller = turns, caller
        turns.count += 1
        turns.taken[caller] += 1

    def __enter__(self) -> Self:
        """Use the place until the block ends."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the place to others."""
        turns, caller = self._turns, self._caller
        turns.count -= 1
        turns.taken[caller] -= 1
        if not turns.taken[caller]:
            del turns.taken[caller]
        for freed in turns.waiting:
            if not freed.done():
                freed.set_result(None)


__all__ = ["DOCUMENTS", "Document", "Models", "Turn", "Turns", "make_handler", "model_path"]
