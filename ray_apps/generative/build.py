"""Builds the door of language models, OpenAI's API below `/v1`, with all that stands behind it.

The workspace is the one that a caller's token, or a header, names. Each of its models is opened when it is first asked for.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from datetime import datetime
from typing import Final

import orjson

from toque.clusters.telemetry.tracing import mark
from toque.functions.generative import is_generative
from toque.functions.generative.engines import EngineProcesses, engine_environment, engine_of, scratch_folder
from toque.functions.live_counts import live_publisher
from toque.functions.prediction_log import LogWriter, close_writers
from toque.functions.runtime.changes import journals_in, watch_of
from toque.functions.runtime.process import enter_process
from toque.ray_apps.admission import flush_refusals, open_admission
from toque.ray_apps.admission.admission import ANY_MODEL, Admitted, NotAdmitted
from toque.ray_apps.admission.request_limits import TokenBudgets
from toque.ray_apps.generative.answering.generator import Generator
from toque.ray_apps.generative.openai.errors import ApiRefusal, error_document
from toque.ray_apps.generative.openai.requests import CHAT, COMPLETION, EMBEDDING, RESPONSE, parse_request
from toque.ray_apps.generative.options import GenerativeOptions
from toque.ray_apps.generative.series import EngineSeries, LoadMeter
from toque.ray_apps.generative.versions import VersionStarter
from toque.ray_apps.predictor.deploy.replica import confirmation_of, open_log
from toque.ray_apps.predictor.http.auth import (
    INFER,
    READ,
    WORKSPACE,
    Authenticator,
    NoAuthentication,
    TokenAuthenticator,
)
from toque.ray_apps.predictor.http.body import LargeBodies, read_body
from toque.ray_apps.predictor.http.endpoint import JSON, Answer, Endpoint, Request
from toque.ray_apps.predictor.inference.live import LiveCounter, ModelSeries
from toque.ray_apps.predictor.inference.recording import Recorder
from toque.ray_apps.predictor.protocol.errors import Denied, PredictorError
from toque.ray_apps.predictor.versions.follower import VersionFollower
from toque.registry import InvalidInput, ModelState, ModelVersion, NotFound, RegistryError, Role, open_store
from toque.registry.access import workspace_store
from toque.registry.audit_keys import AuditKeys
from toque.registry.registry import Registry

UNIT: Final = b"x-toque-unit"
"""Header that names whom the split assigns; else the field `user` of the request does."""
_ROUTES: Final = {f"/{kind}": kind for kind in (CHAT, COMPLETION, EMBEDDING, RESPONSE)}
_UNAUTHORIZED: Final = 401
_MAY_RETRY: Final = {429, 503}


def build_door(options: GenerativeOptions, *, name: str = "generative") -> GenerativeDoor:
    """Make the door's ASGI application, in the event loop that will run it."""
    enter_process(
        "generative",
        name=name,
        store_url=options.store_url,
        environment=os.environ,
        redis_url=options.redis_url,
    )
    return _Parts(options, name).door()


class _Parts:
    """What all language models of a platform share behind one door."""

    def __init__(self, options: GenerativeOptions, name: str) -> None:
        self._options, self._name = options, name
        self._max_in_flight = options.max_ongoing_requests + max(0, options.max_queued_requests)
        self._platform = open_store(options.store_url, audit_keys=AuditKeys.of_environment(os.environ))
        self._held = ExitStack()
        self._folder = self._held.enter_context(scratch_folder())
        self._engines = EngineProcesses(
            engine_of(options.engine, options.engine_program),
            self._folder / "logs",
            environment=engine_environment(os.environ),
            most_waiting=max(
                1, self._max_in_flight // 2
            ),  # the door refuses the others without a look at their tier
        )
        self._budgets, self._meter, self._loop = TokenBudgets(), LoadMeter(), asyncio.get_running_loop()

    def door(self) -> GenerativeDoor:
        """Make the door, with no workspace opened yet."""
        options = self._options
        return GenerativeDoor(
            self._workspace,
            self._authenticator(),
            max_body_bytes=options.max_body_bytes,
            max_in_flight=self._max_in_flight,
            series=EngineSeries(self._engines) if options.metrics else None,
            meter=self._meter,
            on_close=self._close,
        )

    def _workspace(self, name: str) -> GenerativeModels:
        """Make the language models of a workspace, none of them opened."""
        options = self._options.model_copy(update={"workspace": name})
        registry = Registry(workspace_store(self._platform, name), actor="generative")
        starter = VersionStarter(
            registry, self._engines, workspace=name, loop=self._loop, folder=self._folder / "weights",
            start_s=options.start_s, threads=options.engine_threads,
        )  # fmt: skip
        log = open_log(options)
        return GenerativeModels(
            registry,
            lambda model: _generator(model, options, registry, starter, log, self._budgets, self._meter),
        )

    def _authenticator(self) -> Authenticator:
        options = self._options
        if not options.authentication:
            return NoAuthentication(None)
        return TokenAuthenticator(
            open_admission(self._platform, self._name, oidc=options.oidc), workspace=None
        )

    async def _close(self) -> None:
        await self._engines.close()
        await self._loop.run_in_executor(None, close_writers)
        await self._loop.run_in_executor(None, flush_refusals)
        self._held.close()


def _generator(
    model: str,
    options: GenerativeOptions,
    registry: Registry,
    starter: VersionStarter,
    log: LogWriter | None,
    budgets: TokenBudgets,
    meter: LoadMeter,
) -> Generator:
    series = ModelSeries(model, options.workspace) if options.metrics else None
    tally = None
    if options.redis_url is not None:
        tally = live_publisher(options.redis_url).tally(options.workspace, model)
    journal = journals_in(registry.store, registry.follow(model).journal.path)
    made = Generator(
        VersionFollower(
            model,
            registry,
            starter.start,
            watch=watch_of(options.redis_url, journal, every_s=options.poll_s),
            retain=1,
            dropped=starter.dropped,
        ),
        Recorder(model, log, confirmation=confirmation_of(log, options)),
        workspace=options.workspace,
        budgets=budgets,
        live=LiveCounter(tally, series),
        meter=meter,
        price=options.token_price(model),
        close=series.close if series is not None else lambda: None,
    )
    if series is not None:
        series.responded(made.statuses)
    return made


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


class GenerativeModels:
    """Generators of a workspace's models by name. make: one for a model, not started."""

    def __init__(self, registry: Registry, make: Callable[[str], Generator]) -> None:
        self._registry, self._make = registry, make
        self._opened: dict[str, asyncio.Task[Generator]] = {}

    async def get(self, model: str) -> Generator:
        """Get a model's generator; the first to ask waits until its versions are ready. Raises: ApiRefusal."""
        opening = self._opened.get(model)
        if opening is None:
            opening = self._opened[model] = asyncio.get_running_loop().create_task(self._open(model))
        try:
            return await asyncio.shield(opening)
        except Exception:
            if self._opened.get(model) is opening:  # not the next try, which another caller has begun since
                del self._opened[model]
            raise

    def list(self) -> dict[str, datetime]:
        """List the language models with a champion, with the time each was made; reads the store. Raises: ApiRefusal 503."""
        try:
            states = [self._registry.get_model(name) for name in self._registry.list_models()]
        except RegistryError as error:
            raise _store_away(error) from error
        return {state.name: state.created_at for state in states if _is_served(state) and state.created_at}

    def find_version(self, model: str, selector: str) -> ModelVersion | None:
        """Find the version of a language model that a number or an alias names. Raises: ApiRefusal 503."""
        try:
            version = self._registry.get_version(model, int(selector) if selector.isdecimal() else selector)
        except (NotFound, InvalidInput):
            return None
        except RegistryError as error:
            raise _store_away(error) from error
        return version if is_generative(version) and version.deleted_at is None else None

    async def close(self) -> None:
        """Close every model that was opened."""
        opened = await asyncio.gather(*self._opened.values(), return_exceptions=True)
        await asyncio.gather(*(each.close() for each in opened if isinstance(each, Generator)))

    async def _open(self, model: str) -> Generator:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._check, model)
        generator = self._make(model)
        await loop.run_in_executor(None, generator.follower.start)
        return generator

    def _check(self, model: str) -> None:
        """Refuse a name that is no language model's. Raises: ApiRefusal."""
        try:
            state = self._registry.get_model(model)
        except (NotFound, InvalidInput):
            state = None
        except RegistryError as error:
            raise _store_away(error) from error
        if state is None or not any(map(is_generative, state.versions.values())):
            raise ApiRefusal(
                f"model: there is no language model {model!r:.80}; GET /v1/models lists them",
                status=404,
                param="model",
                code="model_not_found",
            )


def _is_served(state: ModelState) -> bool:
    if state.traffic is None:
        return False
    return is_generative(state.versions[state.traffic.champion.version])


def _store_away(error: RegistryError) -> ApiRefusal:
    return ApiRefusal(f"the store does not answer: {error}", status=503, retry_after_s=1)


__all__ = ["UNIT", "GenerativeDoor", "GenerativeModels", "build_door"]
