"""FastAPI routes that admit a request before its body is read, by a rule that stands in the route's signature.

Bodies are bounded in size, time and number of values, so that parsing one never keeps an event loop from others for long: parsers
hold the interpreter for the whole body, and take time by the value rather than by the byte: a mebibyte of empty lists takes as
long as 50 MiB of text. The bounds are checked by counting bytes, which costs a hundredth of parsing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final

from fastapi import Depends, Request, Security
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toque.clusters.telemetry.tracing import mark
from toque.ray_apps.admission.admission import Admission, Admitted, NotAdmitted, Rule
from toque.registry import Principal, Role

WORKSPACE_HEADERS: Final = ("x-toque-workspace", "x-mlflow-workspace")
"""Headers that name a request's workspace: the platform's own, and the one that MLflow's client sends."""
bearer = HTTPBearer(
    auto_error=False, description="A token from `toque access token create`, or of the OIDC issuer"
)

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
MAX_JSON_BYTES: Final = 4 << 20
MAX_CONTAINERS: Final = 5_000
MAX_VALUES: Final = 200_000
MAX_BODY_BYTES: Final = 16 << 20
BODY_TIMEOUT_S: Final = 60.0
"""Time for a whole body below the limit, and between two pieces of one that has no limit."""


class _Required:
    """Dependency that carries a route's rule, and gives the handler the principal that was admitted by it.

    model: fixed model that the route concerns, such as `ANY_MODEL`; None: its path parameter `model`, if it has one.
    """

    def __init__(self, rule: Rule, model: str | None = None) -> None:
        self.rule, self.model = rule, model

    async def __call__(
        self, request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)]
    ) -> Principal:
        """Return the principal of a request that has been admitted."""
        return admitted_of(request).principal


class _Open(_Required):
    """Dependency of a route that needs no token."""

    def __init__(self) -> None:
        super().__init__(Rule(()))

    async def __call__(self) -> None:  # type: ignore[override]  # FastAPI reads this signature
        """Return nothing, as nobody was identified."""


def allowed(*roles: Role, model: str | None = None, anywhere: bool = False) -> Any:
    """Require one of `roles` on a route; a FastAPI dependency that yields the request's principal.

    model: as `Rule` has it, for a route without the path parameter `model`. anywhere: as `Rule` has it.
    """
    return Depends(_Required(Rule(roles, anywhere), model))


OPEN: Final = Depends(_Open())
"""Declares that a route needs no token, in its `dependencies`."""


def admitted_of(request: Request) -> Admitted:
    """Get what a guarded route's request was admitted with."""
    found: Admitted = request.state.admitted
    return found


def rule_of(dependant: Dependant) -> _Required | None:
    """Find the rule in a route's dependencies, those of its dependencies included."""
    for each in dependant.dependencies:
        found = each.call if isinstance(each.call, _Required) else rule_of(each)
        if found is not None:
            return found
    return None


class GuardedRoute(APIRoute):
    """Route of an application whose state holds an `admission`; a request is admitted before its body is read.

    Raises: TypeError when a route is declared without `allowed(…)` or `OPEN`.
    """

    def get_route_handler(self) -> Handler:
        """Wrap FastAPI's handler, which parses the body before any dependency runs."""
        required = rule_of(self.dependant)
        if required is None:
            raise TypeError(
                f"{self.methods} {self.path} has no rule; require a role by `allowed(…)`, or say OPEN"
            )
        handler = super().get_route_handler()
        if self.body_field is not None:
            handler = _with_few_values(handler)
        return handler if required.rule.is_open else _guarded(handler, required)


def _guarded(handler: Handler, required: _Required) -> Handler:
    async def answer(request: Request) -> Response:
        admission: Admission = request.app.state.admission
        what, client = f"{request.method} {request.url.path}", client_of(request)
        admitted = await admission.admit(
            header(request, "authorization"),
            required.rule,
            what=what,
            workspace=workspace_named(request),
            model=required.model or request.path_params.get("model"),
            client=client,
        )
        request.state.admitted = admitted
        mark("token")
        try:
            return await handler(request)
        except NotAdmitted as refusal:  # of what only the body could tell
            who = admitted.principal.name
            admission.note(refusal, who=who, what=what, workspace=admitted.workspace, client=client)
            raise
        finally:
            admitted.release()

    return answer


def _with_few_values(handler: Handler) -> Handler:
    """Check a body that FastAPI will parse on the event loop; it reads the same bytes again."""

    async def answer(request: Request) -> Response:
        check_json_values(await request.body())
        return await handler(request)

    return answer


def workspace_named(request: Request) -> str | None:
    """Read the workspace that a request names in one of its headers, if any."""
    named = (request.headers.get(name, "").strip() for name in WORKSPACE_HEADERS)
    return next(filter(None, named), None)


def header(request: Request, name: str) -> bytes | None:
    """Read a header as the bytes that were sent."""
    found = request.headers.get(name)
    return None if found is None else found.encode("latin-1")


def client_of(request: Request) -> str:
    """Address from which a request came, as the server knows it."""
    return request.client.host if request.client else ""


def check_json_values(
    body: bytes,
    *,
    max_bytes: int = MAX_JSON_BYTES,
    max_containers: int = MAX_CONTAINERS,
    max_values: int = MAX_VALUES,
) -> None:
    """Check that a JSON body has few enough values to be parsed on an event loop.

    max_containers: opening brackets and braces; max_values: commas; those inside of texts count too.
    Raises: HTTPException 413 with the remedy.
    """
    if len(body) > max_bytes:
        raise HTTPException(
            413, f"the body has {len(body)} bytes, at most {max_bytes} are taken here: pass data by reference"
        )
    containers, values = body.count(b"[") + body.count(b"{"), body.count(b",")
    if containers > max_containers or values > max_values:
        raise HTTPException(
            413,
            f"the body has {containers} lists and objects and {values} commas; at most {max_containers} and "
            f"{max_values} are taken at a time: send less, or pass data by reference",
        )


class BodyLimit:
    """ASGI middleware that refuses a body above `limit_bytes`, declared or streamed, or one that trickles.

    limit_bytes: None: any size, as long as pieces keep coming. timeout_s: for the whole body, without a limit for
    each piece of it. Reading past a limit raises HTTPException 413 or 408, which becomes the response.
    """

    def __init__(
        self, app: ASGIApp, *, limit_bytes: int | None = MAX_BODY_BYTES, timeout_s: float = BODY_TIMEOUT_S
    ) -> None:
        self._app = app
        self._limit_bytes = limit_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting the bytes of its body and the time that they take."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        read = int(declared) if declared.isdigit() else 0
        deadline: float | None = None
        complete = False

        async def counted() -> Message:
            nonlocal read, deadline, complete
            if complete:  # what comes now is the disconnect, which may be awaited for long
                return await receive()
            self._check(read)
            now = asyncio.get_running_loop().time()
            if deadline is None or self._limit_bytes is None:
                deadline = now + self._timeout_s
            message = await self._within(receive, deadline)
            complete = not message.get("more_body", False)
            if declared == b"0":
                read += len(message.get("body", b""))
                self._check(read)
            return message

        await self._app(scope, counted, send)

    async def _within(self, receive: Receive, deadline: float) -> Message:
        try:
            async with asyncio.timeout_at(deadline):
                return await receive()
        except TimeoutError:
            raise HTTPException(
                408, f"the body did not come within {self._timeout_s:g} s; send it faster, or in parts"
            ) from None

    def _check(self, size_bytes: int) -> None:
        if self._limit_bytes is not None and size_bytes > self._limit_bytes:
            raise HTTPException(
                413, f"the body is larger than {self._limit_bytes} bytes; send less at a time"
            )
