"""OpenAI's API below `/v1` for the language models of the workspace that a caller's token, or a header, names."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import orjson

from toque.clusters.telemetry.tracing import mark
from toque.ray_apps.admission.admission import ANY_MODEL, Admitted, NotAdmitted
from toque.ray_apps.generative.load import LoadMeter
from toque.ray_apps.generative.models import GenerativeModels
from toque.ray_apps.generative.openai.errors import ApiRefusal, error_document
from toque.ray_apps.generative.openai.requests import CHAT, COMPLETION, EMBEDDING, RESPONSE, parse_request
from toque.ray_apps.generative.series import EngineSeries
from toque.ray_apps.predictor.http.auth import INFER, READ, WORKSPACE, Authenticator
from toque.ray_apps.predictor.http.body import LargeBodies, read_body
from toque.ray_apps.predictor.http.endpoint import JSON, Answer, Endpoint, Request
from toque.ray_apps.predictor.protocol.errors import Denied, PredictorError
from toque.registry import Role

__all__ = ["UNIT", "GenerativeDoor"]

UNIT: Final = b"x-toque-unit"
"""Header that names whom the split assigns; else the field `user` of the request does."""
_ROUTES: Final = {f"/{kind}": kind for kind in (CHAT, COMPLETION, EMBEDDING, RESPONSE)}
_UNAUTHORIZED: Final = 401
_MAY_RETRY: Final = {429, 503}


class GenerativeDoor(Endpoint):
    """An ASGI application, mounted at `/v1`. auth: admits a request or refuses it, on every route, and tells its workspace.

    open_workspace: makes the models of one; reads the store. max_body_bytes: bound on a request's body, unpacked. max_in_flight: beyond it requests are refused with 429. series: of the
    engines, kept as long as the door; meter: of the load of all models. on_close: ends what the workspaces share.
    """

    def __init__(
        self,
        open_workspace: Callable[[str], GenerativeModels],
        auth: Authenticator,
        *,
        max_body_bytes: int = 16 << 20,
        max_in_flight: int = 512,
        series: EngineSeries | None = None,
        meter: LoadMeter | None = None,
        on_close: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(max_in_flight=max_in_flight)
        self._open_workspace, self.auth = open_workspace, auth
        self._workspaces: dict[str, asyncio.Future[GenerativeModels]] = {}
        self._max_body_bytes, self._on_close = max_body_bytes, on_close
        self._large, self._series = LargeBodies(), series
        self.meter = meter if meter is not None else LoadMeter()

    async def answer(self, request: Request) -> Answer:
        """Status, headers and body of the answer to one request. Raises: PredictorError."""
        kind = _ROUTES.get(request.path)
        request.admitted = admitted = await self.auth.admit(
            request.headers.get(b"authorization"),
            INFER if kind else READ,
            model=ANY_MODEL,
            what=f"{request.method} {request.mount}{request.path}",
            client=request.client,
            workspace=request.headers.get(WORKSPACE),
        )
        mark("token")
        if kind is None:
            return await self._describe(request, admitted)
        _require_method(request, "POST")
        try:
            body = await read_body(request, self._max_body_bytes, self._large)
            unit = request.headers.get(UNIT)
            ask = parse_request(kind, body, unit=unit.decode("latin-1") if unit else None)
        finally:
            self._large.release(request)
        _require(admitted, Role.caller, ask.model)
        generator = await (await self._models(admitted.workspace)).get(ask.model)
        mark("read")
        return await generator.answer(ask, request, self.auth.limits_of(admitted))

    def refusal(self, refusal: PredictorError) -> Answer:
        """Make the response that tells a refusal, in the shape that OpenAI's clients read."""
        headers = [JSON]
        if refusal.status == _UNAUTHORIZED:
            headers.append((b"www-authenticate", b"Bearer"))
        after = refusal.retry_after_s if isinstance(refusal, ApiRefusal) else None
        if after is not None or refusal.status in _MAY_RETRY:
            headers.append((b"retry-after", b"%d" % max(1, round(after or 1))))
        return refusal.status, headers, error_document(refusal)

    def autoscaling_metrics(self) -> dict[str, float]:
        """Metrics of the last seconds; called once a second."""
        return self.meter.autoscaling_metrics()

    async def close(self) -> None:
        """Close all models and end their engines."""
        opened = await asyncio.gather(*self._workspaces.values(), return_exceptions=True)
        await asyncio.gather(*(each.close() for each in opened if isinstance(each, GenerativeModels)))
        await self._on_close()

    async def _models(self, workspace: str) -> GenerativeModels:
        """Get a workspace's models, opened in a thread by the first who asks."""
        found = self._workspaces.get(workspace)
        if found is None:
            loop = asyncio.get_running_loop()
            found = loop.run_in_executor(None, self._open_workspace, workspace)
            self._workspaces[workspace] = found
        try:
            return await asyncio.shield(found)
        except Exception:
            if (
                self._workspaces.get(workspace) is found
            ):  # not the next try, which another caller has begun since
                del self._workspaces[workspace]
            raise

    async def _describe(self, request: Request, admitted: Admitted) -> Answer:
        """List the language models that a caller reaches, or describe one of them. Raises: ApiRefusal 404."""
        if request.path != "/models" and not request.path.startswith("/models/"):
            raise ApiRefusal(
                f"path: no route {request.mount}{request.path}; see docs/generative.md", status=404
            )
        _require_method(request, "GET")
        loop, models = asyncio.get_running_loop(), await self._models(admitted.workspace)
        asked = request.path.removeprefix("/models").removeprefix("/")
        model, at, selector = asked.partition("@")
        if at:  # a version, as it may be asked
            version = await loop.run_in_executor(None, models.find_version, model, selector)
            found = {asked: version.created_at} if version is not None else {}
        else:
            found = await loop.run_in_executor(None, models.list)
        shown = [
            {
                "id": name,
                "object": "model",
                "created": int(created.timestamp()),
                "owned_by": admitted.workspace,
            }
            for name, created in sorted(found.items())
            if any(admitted.may(role, model=name.partition("@")[0]) for role in (Role.caller, Role.viewer))
        ]
        if request.path == "/models":
            return 200, [JSON], orjson.dumps({"object": "list", "data": shown})
        for each in shown:
            if each["id"] == asked:
                return 200, [JSON], orjson.dumps(each)
        raise ApiRefusal(
            f"model: there is no language model {asked!r:.80}", status=404, code="model_not_found"
        )


def _require(admitted: Admitted, role: Role, model: str) -> None:
    try:
        admitted.require(role, model=model)
    except NotAdmitted as refusal:
        raise Denied(str(refusal), status=refusal.status) from refusal


def _require_method(request: Request, method: str) -> None:
    if request.method != method and not (method == "GET" and request.method == "HEAD"):
        raise ApiRefusal(
            f"method: {request.mount}{request.path} takes {method}, not {request.method}", status=405
        )
