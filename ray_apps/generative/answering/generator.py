"""Answers requests for one language model: chooses a version, asks its engine, passes the answer on, and logs it.

The split's version answers, or the one that the request names.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import aiohttp
import orjson

from toque.clusters.telemetry.tracing import current_request, mark
from toque.functions.generative.engines import EngineDown, QueueFull, ask_embeddings
from toque.functions.live_counts import End, end_of
from toque.functions.prediction_log import PINNED
from toque.functions.runtime.receipt import TokenPrice
from toque.ray_apps.admission.request_limits import Reservation, TokenBudgets, TooManyRequests
from toque.ray_apps.generative.answering.call import ENGINE_S, Call
from toque.ray_apps.generative.answering.engine_request import (
    FILTERED,
    changes,
    check_context,
    decoded_prompt,
    engine_body,
    engine_refusal,
    finding_tensors,
    guard_answer,
    guarded_request,
    refusal_of,
)
from toque.ray_apps.generative.answering.recording import (
    IN_VIEW,
    LoggedRow,
    embedding_tensors,
    live_outputs,
    request_tensors,
    response_tensors,
)
from toque.ray_apps.generative.answering.shadows import GenerativeShadows
from toque.ray_apps.generative.openai.answers import (
    AnswerRecord,
    EventStream,
    ResponseStream,
    as_choice,
    record_of,
    with_completion_logprobs,
)
from toque.ray_apps.generative.openai.errors import ApiRefusal, error_document, refusal_by_engine
from toque.ray_apps.generative.openai.requests import CHAT, COMPLETION, EMBEDDING, RESPONSE, Ask, granted_tier
from toque.ray_apps.generative.openai.requests import FIELD as SERVICE_TIER
from toque.ray_apps.generative.openai.responses import items_of, response_of
from toque.ray_apps.generative.openai.tools import calls_by_schema, check_tools, with_call
from toque.ray_apps.generative.series import LoadMeter, TokenSeries
from toque.ray_apps.generative.versions import GenerativeVersion
from toque.ray_apps.predictor.http.endpoint import JSON, Answer, Request
from toque.ray_apps.predictor.inference.caller import Caller
from toque.ray_apps.predictor.inference.live import LiveCounter
from toque.ray_apps.predictor.inference.recording import Failure, Recorder
from toque.ray_apps.predictor.protocol.datatypes import Array
from toque.ray_apps.predictor.protocol.errors import NotFound, PredictorError
from toque.ray_apps.predictor.versions.follower import VersionFollower
from toque.registry import Limits, ModelPolicy
from toque.registry.models.traffic import is_shadowed

_OK, _CALLER_GONE, _FAULT = 200, 499, 500
_EVENTS: Final = (b"content-type", b"text/event-stream; charset=utf-8")
_NO_POLICY: Final = ModelPolicy()
_JSON_HEADERS: Final = {"content-type": "application/json"}
_AHEAD_BYTES: Final = 4 << 20
"""Half of what is read of a stream ahead of a slow caller, who has no slot once all of it is."""
_ID_PREFIX: Final = {CHAT: "chatcmpl-", COMPLETION: "cmpl-", EMBEDDING: "embd-", RESPONSE: "resp_"}


class Generator:
    """Answers requests for one model with the versions that a follower keeps ready.

    budgets: of tokens, and meter, of the replica's load: models share them. live: counts for who judges a rollout. price: of the
    model's tokens, for the log. workspace: the model's. statuses: how often each HTTP status was answered; a stream that breaks off
    counts as what broke it.
    """

    def __init__(
        self,
        follower: VersionFollower[GenerativeVersion],
        recorder: Recorder,
        *,
        workspace: str,
        budgets: TokenBudgets,
        live: LiveCounter,
        meter: LoadMeter | None = None,
        price: TokenPrice | None = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.follower, self.recorder = follower, recorder
        self._workspace, self._budgets, self._live, self._close = workspace, budgets, live, close
        self._chooser = VersionChooser(follower, live, meter if meter is not None else LoadMeter())
        self._price = price
        self._series: dict[tuple[int, str], TokenSeries] = {}
        self.shadows = GenerativeShadows(recorder, live, price=price)
        self.statuses: Counter[int] = Counter()

    async def answer(self, ask: Ask, request: Request, limits: Sequence[tuple[str, Limits]]) -> Answer:
        """Answer a request, in pieces by the request's `send` if it asks for a stream. Raises: PredictorError."""
        try:
            answer = await self._answered(ask, request, limits)
        except BaseException as error:
            self.statuses[_status_of(error)] += 1
            raise
        self.statuses[answer[0]] += 1
        return answer

    async def _answered(self, ask: Ask, request: Request, limits: Sequence[tuple[str, Limits]]) -> Answer:
        tier = granted_tier(ask.body, limits)
        call = await self._chooser.choose(ask)
        call.tier = tier
        if call.trace is not None:
            call.trace.answered_by(call.id, ask.model, call.number, call.arm, id_made_here=True)
        try:
            await self._guard(call)
            body = engine_body(call.ask, call.version)
            await call.lease.ready(ENGINE_S)
            check_tools(body, call.lease.process.no_tools)
            call.calls_by_schema = not call.lease.process.engine.requires_calls and calls_by_schema(body)
            prompt_tokens, most = await check_context(
                call.lease.process, call.version.settings, call.ask, body
            )
            call.reservation = self._reserve(limits, prompt_tokens + most)
            call.load.hold(prompt_tokens + most)
            mark("prompt")
            work = self._ask_in_turn(call, body, request, prompt_tokens)
            return await Caller(request.receive).run_while_connected(work)
        except BaseException as error:
            self._failed(call, error)
            if isinstance(error, EngineDown | aiohttp.ClientError):
                call.used_tokens = 0
                raise ApiRefusal(f"engine: {error}; send it again", status=503, retry_after_s=1) from error
            raise
        finally:
            call.close()

    async def close(self) -> None:
        """Stop following and shadowing, and write the queued failures; engines end with the versions."""
        await self.shadows.close()
        self.recorder.flush()
        await asyncio.get_running_loop().run_in_executor(None, self.follower.stop)
        self._close()

    async def _guard(self, call: Call) -> None:
        """Apply the version's rules before; what they refuse is logged and counted. Raises: ApiRefusal."""
        if call.ask.token_ids is not None:
            await call.lease.ready(ENGINE_S)
            call.ask = await decoded_prompt(call.lease.process, call.version.settings, call.ask)
        call.ask, call.findings = guarded_request(call.ask, call.version.prompt)
        refusal = refusal_of(call.findings, call.version, call.ask.kind)
        if refusal is not None:
            answer = AnswerRecord(finish_reason=FILTERED)
            await self._record(call, answer, response_tensors(answer))
            raise refusal

    def _reserve(self, limits: Sequence[tuple[str, Limits]], tokens: int) -> Reservation:
        try:
            return self._budgets.reserve(limits, tokens)
        except TooManyRequests as error:
            raise ApiRefusal(str(error), status=429, retry_after_s=error.retry_after_s) from error

    async def _ask_in_turn(
        self, call: Call, body: dict[str, Any], request: Request, prompt_tokens: int
    ) -> Answer:
        """Ask the engine once it has a slot for the request; embeddings, which take one for a moment, it queues itself."""
        process = call.lease.process
        if call.ask.kind != EMBEDDING:
            try:
                call.slot = await process.slots.take(call.tier)
            except QueueFull as error:
                raise ApiRefusal(str(error), status=429, retry_after_s=error.retry_after_s) from error
            await process.ready(0)  # it may have died since: then nobody in the queue waits for it in turn
            mark("queue")
        call.used_tokens = prompt_tokens  # so much of one that is given up
        return await self._ask_engine(call, body, request)

    async def _ask_engine(self, call: Call, body: dict[str, Any], request: Request) -> Answer:
        process, body["model"] = call.lease.process, call.lease.model
        if call.ask.kind == EMBEDDING:
            status, found = await ask_embeddings(process, body)
            if not isinstance(found, dict):
                raise refusal_by_engine(status, found)
            mark("engine")
            return await self._answer_whole(call, found)
        address = f"{process.base}/v1/{call.ask.kind}"
        async with process.client.post(
            address, data=orjson.dumps(body), headers=_JSON_HEADERS, read_bufsize=_AHEAD_BYTES
        ) as response:
            if response.status != _OK:
                raise await engine_refusal(process, body, response.status, await response.read())
            response.content.on_eof(call.free_slot)
            if call.ask.stream:
                return await self._pass_stream_on(call, response, request)
            document = orjson.loads(await response.read())
        mark("engine")
        return await self._answer_whole(call, document)

    async def _answer_whole(self, call: Call, document: dict[str, Any]) -> Answer:
        if call.ask.kind == EMBEDDING:
            answer = AnswerRecord()
            answer.count(document.get("usage") or {})
            outputs = embedding_tensors(document.get("data") or [], answer.prompt_tokens)
        else:
            answer = record_of(document, call.elapsed_ms() / 1e3)
            if self._finished(call, answer):
                document["choices"] = [as_choice(answer, call.ask.kind)]
            if call.ask.kind == COMPLETION:
                document["choices"] = [with_completion_logprobs(choice) for choice in document["choices"]]
            outputs = response_tensors(answer)
        await self._record(call, answer, outputs)
        if call.ask.as_response:
            output = items_of(answer.message, call.id)
            document = response_of(
                call.ask.body, call.id, str(call.version), output, usage=document.get("usage"),
                finish_reason=answer.finish_reason,
            )  # fmt: skip
        document |= {"model": str(call.version)}
        if call.ask.kind != EMBEDDING:
            document["id"] = call.id
        if SERVICE_TIER in call.ask.body:
            document[SERVICE_TIER] = call.tier
        return _OK, [JSON, *call.headers()], orjson.dumps(document)

    async def _pass_stream_on(self, call: Call, response: aiohttp.ClientResponse, request: Request) -> Answer:
        send = request.send
        if send is None:
            raise ApiRefusal("stream: not possible by this door", param="stream")
        events = _events(call)
        headers = [_EVENTS, (b"cache-control", b"no-cache"), *call.headers()]
        await send({"type": "http.response.start", "status": _OK, "headers": headers})
        request.streamed, status = True, _OK
        held, holds = list[bytes](), call.calls_by_schema or bool(call.version.prompt.guardrails.after)
        try:
            async for data in response.content.iter_any():
                piece = events.feed(data, time.perf_counter())
                call.used_tokens += events.pieces - call.pieces
                call.pieces = events.pieces
                if call.first_token_ms is None and call.heard(events.record):
                    mark("first token")
                if holds:
                    held.append(piece)
                elif piece:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            answer = events.finish()
            mark("engine")
            is_changed = self._finished(call, answer)
            await self._record(call, answer, response_tensors(answer))
            rest = events.rewritten(answer) if is_changed else b"".join(held)
            last = rest + events.last()
        except (EngineDown, aiohttp.ClientError, PredictorError) as error:
            self._failed(call, error)
            refusal = (
                error if isinstance(error, PredictorError) else ApiRefusal(f"engine: {error}", status=503)
            )
            last, status = events.failed(error_document(refusal)), _status_of(refusal)
        await send({"type": "http.response.body", "body": last})
        return status, headers, b""

    @staticmethod
    def _finished(call: Call, answer: AnswerRecord) -> bool:
        """Make an answer as it goes on: a call that is JSON becomes one, and rules are applied; returns whether that changes it."""
        if call.calls_by_schema:
            answer.message = with_call(answer.message)
            if answer.finish_reason == "stop":
                answer.finish_reason = "tool_calls"
        findings = guard_answer(answer, call.version.prompt)
        call.findings += findings
        return call.calls_by_schema or changes(findings)

    async def _record(self, call: Call, answer: AnswerRecord, outputs: dict[str, Array]) -> None:
        """Log an answer and count it, before the caller has all of it. Raises: NotLogged."""
        call.used_tokens = answer.prompt_tokens + answer.completion_tokens
        row = LoggedRow.of(
            call.id, request_tensors(call.ask), outputs | finding_tensors(call.findings), answer, price=self._price,
            keep_texts=self._policy.keep_texts,
        )  # fmt: skip
        logged = self.recorder.record(
            id=call.id, version=call.number, arm=call.arm, shadow=False, unit=call.unit,
            at_us=time.time_ns() // 1_000, latency_ms=call.elapsed_ms(), rows=1, inputs=row.inputs, outputs=row.outputs,
            trace=call.trace.row() if call.trace is not None else None, propensity=call.routes.chance(call.arm), in_view=IN_VIEW,
        )  # fmt: skip
        if logged is not None:
            await self.recorder.confirmed(logged)
        mark("log")
        call.describe(answer)
        series = self._series.get((call.number, call.arm))
        if series is None:
            series = TokenSeries(self._workspace, call.ask.model, call.number, call.arm)
            self._series[call.number, call.arm] = series
        declined = answer.declines(self._policy.declining)
        series.count(answer, declined=declined)
        series.found(call.findings)
        call.heard(answer)
        judged = live_outputs(answer, embeds=call.ask.kind == EMBEDDING, declined=declined)
        self._live.answered(call, judged, latency_ms=call.first_token_ms)
        call.is_counted = True
        if call.ask.selector is None and is_shadowed(call.arm) and answer.prompt_tokens:
            shadows = [each for each in self.follower.routes.shadows if each is not call.version]
            self.shadows.offer_copies(call, shadows, self._policy)

    @property
    def _policy(self) -> ModelPolicy:
        """The model's policy as it is now, which says for all versions what declines and which texts are kept."""
        view = self.follower.view
        return _NO_POLICY if view is None else view.policy

    def _failed(self, call: Call, error: BaseException) -> None:
        """Count a request that was not answered, once, and log one that the version failed."""
        if call.is_counted:
            return
        call.is_counted = True
        status = _status_of(error)
        self._live.failed(call, status, latency_ms=call.first_token_ms)
        is_refused = end_of(status) is End.REFUSED  # what a caller got wrong
        if (
            call.arm != PINNED and not is_refused
        ):  # a request by number is a trial; neither is evidence against the version
            self.recorder.fail(
                Failure(
                    id=call.id, version=call.number, arm=call.arm, shadow=False, unit=call.unit,
                    at_us=time.time_ns() // 1_000, latency_ms=call.elapsed_ms(),
                    trace=call.trace.row(status) if call.trace is not None else None,
                    propensity=call.routes.chance(call.arm),
                )
            )  # fmt: skip


def _events(call: Call) -> EventStream:
    """The stream of an answer, as the caller's API has it."""
    name = str(call.version)
    if call.ask.as_response:
        return ResponseStream(call.id, name, asked=call.ask.body, begin_s=call.begin)
    return EventStream(call.id, name, wants_usage=call.ask.wants_usage, begin_s=call.begin)


def _status_of(error: BaseException) -> int:
    """HTTP status that an error becomes; of a caller who left, none that is the server's fault."""
    if isinstance(error, PredictorError):
        return error.status
    if isinstance(error, EngineDown | aiohttp.ClientError):
        return 503
    return _CALLER_GONE if isinstance(error, asyncio.CancelledError) else _FAULT


class VersionChooser:
    """Chooses among the versions of one model that a follower keeps ready.

    live: hears of requests that no version can answer. meter: of the replica's load.
    """

    def __init__(
        self, follower: VersionFollower[GenerativeVersion], live: LiveCounter, meter: LoadMeter
    ) -> None:
        self._follower, self._live, self._meter = follower, live, meter

    async def choose(self, ask: Ask) -> Call:
        """Choose arm and version, and take a hold on its engine, so that no change of the policy ends it."""
        call_id = _ID_PREFIX[RESPONSE if ask.as_response else ask.kind] + os.urandom(16).hex()
        begin, routes = time.perf_counter(), self._follower.routes
        if ask.selector is None:
            arm, version = routes.choose(ask.split_key or call_id, ask.attributes)
            if version is None:
                self._live.unserved(ask.split_key or call_id, routes.traffic)
                raise ApiRefusal(
                    f"model: {ask.model!r} has no champion that is ready; try again soon",
                    status=503,
                    param="model",
                    retry_after_s=1,
                )
        else:
            arm, version = PINNED, await self._pinned(ask.model, ask.selector)
        lease = version.lease.again()
        load = self._meter.begin()
        return Call(call_id, ask, ask.split_key, arm, version, routes, begin, lease, current_request(), load)

    async def _pinned(self, model: str, selector: int | str) -> GenerativeVersion:
        """Find a version by number or alias, and start it if it is not ready. Raises: ApiRefusal, NotReady."""
        view = self._follower.view
        number = view.aliases.get(selector) if isinstance(selector, str) and view is not None else selector
        record = view.versions.get(number) if view is not None and isinstance(number, int) else None
        if view is None or record is None or record.status != "READY":
            raise ApiRefusal(
                f"model: {model!r} has no version {selector!r} that may be asked",
                status=404, param="model", code="model_not_found",
            )  # fmt: skip
        in_traffic = view.traffic is not None and record.version in view.traffic.versions
        missing = record.missing(view.policy) if view.policy.guarded and not record.overrides else ()
        if missing and not in_traffic and record.version not in view.aliases.values():
            raise ApiRefusal(
                f"model: {model}@{record.version} is not approved ({', '.join(missing)})",
                status=403, param="model",
            )  # fmt: skip
        found = self._follower.find(record.version)
        if found is not None:
            return found
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(None, self._follower.load, record.version)
        except NotFound as error:
            raise ApiRefusal(str(error), status=404, param="model", code="model_not_found") from error


__all__ = ["Generator", "VersionChooser"]
