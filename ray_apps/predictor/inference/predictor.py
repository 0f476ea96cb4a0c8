"""Predicts: chooses a version for a request, gets its inputs, scores, logs and offers a copy to shadows."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from toque.clusters.telemetry.tracing import RequestTrace, current_request
from toque.functions.live_counts import End, Tally, end_of
from toque.functions.prediction_log import LOAD_TEST, PINNED, epoch_us
from toque.ray_apps.predictor.inference.caller import Caller
from toque.ray_apps.predictor.inference.keys import (
    FeatureSource,
    KeyedRows,
    ModelInputs,
    ServiceRefresher,
    look_up,
    parse_keys,
)
from toque.ray_apps.predictor.inference.live import LiveCounter, ModelSeries
from toque.ray_apps.predictor.inference.recording import Failure, Recorder
from toque.ray_apps.predictor.inference.request_parameters import (
    Explainer,
    ExplainRequest,
    is_load_test,
    parse_explain,
    routing_key,
)
from toque.ray_apps.predictor.inference.shadows import ShadowJob, Shadows
from toque.ray_apps.predictor.protocol.datatypes import Array
from toque.ray_apps.predictor.protocol.errors import (
    BadRequest,
    Denied,
    NotFound,
    NotLogged,
    NotReady,
    Overloaded,
    PredictorError,
)
from toque.ray_apps.predictor.protocol.json import InferRequest, InferResponse, is_large
from toque.ray_apps.predictor.versions.engine import Engine, PendingChampion
from toque.ray_apps.predictor.versions.loaded import LoadedVersion
from toque.ray_apps.predictor.versions.routes import Routes
from toque.ray_apps.predictor.write_coalescing import WriteBatch
from toque.registry.models.traffic import Traffic, is_shadowed

__all__ = ["Predictor"]

_CALLER_GONE, _FAULT = 499, 500
MAX_EXPLANATIONS = 16
"""Requests of a model that may wait for their explanation; more are refused with 429."""


class Predictor:
    """Answers requests for one model with the versions of an engine.

    features: the feature store, None if requests by key cannot be served. clock: the platform's time.
    replay: whether that clock is a replayed one, so that a request may name its own time. tally: counts of the requests by
    arm, for who judges within seconds; series: of Prometheus; None: not counted.
    """

    def __init__(
        self,
        engine: Engine,
        recorder: Recorder,
        *,
        features: FeatureSource | None = None,
        clock: Callable[[], datetime] | None = None,
        replay: bool = False,
        shadow_limit: int = 256,
        tally: Tally | None = None,
        series: ModelSeries | None = None,
    ) -> None:
        self.engine, self.recorder, self.series = engine, recorder, series
        self._live = LiveCounter(tally, series)
        self.shadows = Shadows(recorder, self._look_up, limit=shadow_limit, live=self._live)
        self._features = features
        self._services = ServiceRefresher(features)
        self._clock, self._replay = clock, replay
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="predict")
        self._loader = ThreadPoolExecutor(
            1, thread_name_prefix="load-by-number"
        )  # a load must not hold answers up
        self._explainer = ThreadPoolExecutor(1, thread_name_prefix="explain")  # never before an answer
        self._explaining = 0
        self.pending_champion = PendingChampion(engine)

    async def infer(
        self, request: InferRequest, *, number: int | None = None, caller: Caller | None = None
    ) -> InferResponse:
        """Choose a version, get its inputs, predict, log, and offer a copy to the shadows.

        number: of a requested version, past the split. caller: for whom work stops once it disconnects.
        Raises: PredictorError with the status and the message for the caller.
        """
        prediction_id = request.id or os.urandom(16).hex()
        unit, attributes = routing_key(request.parameters) if request.parameters else (None, None)
        begin = time.perf_counter()
        if number is None and self.engine.champion_pending:
            loading = self.pending_champion.loaded()
            await (loading if caller is None else caller.run_while_connected(loading))
        arm, version, routes = await self._choose(unit or prediction_id, attributes, number)
        if request.parameters and is_load_test(request.parameters) and number is None:
            arm = LOAD_TEST
        call = _Call(prediction_id, unit, arm, version, begin, routes, current_request())
        if call.trace is not None:
            name, made_here = self.engine.model, not request.id
            call.trace.answered_by(prediction_id, name, version.version, arm, id_made_here=made_here)
        try:
            found = await self._inputs(request, call)
            checked = time.perf_counter()
            answer = version.answer_large if request.large else version.answer
            work = answer(found.inputs, call.rows, found.abstained, self._pool)
            outputs = await (work if caller is None or version.inline else caller.run_while_connected(work))
        except BaseException as error:  # also of a caller whose deadline passed or who disconnected
            version.statistics.fail(time.perf_counter() - begin)
            await self._failed(request, call, _status_of(error))
            raise
        call.mark("model")
        version.statistics.succeed(call.rows, input_s=checked - begin, infer_s=time.perf_counter() - checked)
        at_us = self._now_us(call.keys)
        large = request.large or is_large(outputs)
        try:
            if large:
                loop = asyncio.get_running_loop()
                logged = await loop.run_in_executor(
                    self._pool, self._record, call, at_us, found, outputs, None
                )
            else:
                write_batch = None if caller is None else caller.write_batch
                logged = self._record(call, at_us, found, outputs, write_batch)
            if logged is not None:
                await self.recorder.confirmed(logged)
        except NotLogged as error:
            self._live.failed(call, error.status)
            raise
        call.mark("log")
        self._live.answered(call, outputs)
        if self.engine.routes.shadows and arm not in {PINNED, LOAD_TEST} and is_shadowed(arm):
            self._offer_to_shadows(call, at_us, found)
        parameters = _response_parameters(call, found, outputs)
        if call.explanation is not None:
            explaining = self._explain(call.explanation, outputs, found.abstained)
            parameters["explanation"] = await (
                explaining if caller is None else caller.run_while_connected(explaining)
            )
            call.mark("explain")
        return InferResponse(self.engine.model, version.version, outputs, prediction_id, parameters, large)

    def pinned(self, arm: str) -> int:
        """The version of an arm that a request names, past the split. Raises: NotFound."""
        traffic = self.engine.routes.traffic
        arms = {arm.name: arm.version for arm in traffic.arms} if traffic is not None else {}
        if arm not in arms:
            raise NotFound(
                f"X-Toque-Arm: {self.engine.model!r} has no arm {arm[:80]!r} now; it has {[*arms]}"
            )
        return arms[arm]

    async def _choose(
        self, unit: str, attributes: Mapping[str, str] | None, number: int | None
    ) -> tuple[str, LoadedVersion, Routes[LoadedVersion]]:
        """Choose arm and version; returns them and the routes that they are of."""
        routes = self.engine.routes
        if number is None:
            arm, version = routes.choose(unit, attributes)
            if version is None:
                self._live.unserved(unit, routes.traffic)
                fault = self.engine.find_fault()
                raise NotReady(
                    f"model {self.engine.model!r} has no champion; promote one of its versions"
                    if fault is None
                    else f"{fault}; try again soon"
                )
            return arm, version, routes
        self._refuse_unserved(number)
        found = self.engine.find(number)
        if found is None:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._loader, self.engine.load, number)
        return PINNED, found, routes

    def _refuse_unserved(self, number: int) -> None:
        """Refuse a version by number that has no traffic and was rejected or not approved; a caller may not load it."""
        view, traffic = self.engine.view, self.engine.routes.traffic
        record = view.versions.get(number) if view is not None else None
        if view is None or record is None or (traffic is not None and number in traffic.versions):
            return
        if record.status == "REJECTED":
            raise NotFound(f"version {number} of {self.engine.model!r} was rejected and is not served")
        missing = record.missing(view.policy) if view.policy.guarded and not record.overrides else ()
        if missing and number not in view.aliases.values():
            raise Denied(
                f"version {number} of {self.engine.model!r} is not approved ({', '.join(missing)}): approve it, or point "
                "an alias at it that the model's policy does not guard",
                status=403,
            )

    async def _inputs(self, request: InferRequest, call: _Call) -> ModelInputs:
        """Get the version's inputs, and check them against its signature."""
        call.version.check_outputs(request.outputs)
        if request.parameters:
            call.keys = parse_keys(request.parameters, replay=self._replay)
        if call.keys is None:
            # tensors are sent for the champion, of which a canary may read fewer columns
            champion = self.engine.routes.champion if call.arm != PINNED else None
            found = ModelInputs(call.version.selected(request.inputs, champion), [])
        elif request.inputs:
            raise BadRequest(
                "inputs: give either tensors, or parameters.entities and parameters.request; not both"
            )
        else:
            found = await self._look_up(call.version, call.keys, self._serving())
            call.keys = found.rows
            call.mark("features")
        call.rows = call.version.check(found.inputs)
        wanted = parse_explain(request.parameters) if request.parameters else None
        if wanted is not None:
            call.explanation = self._explanation(call, found, wanted)
        return found

    def _explanation(self, call: _Call, found: ModelInputs, wanted: ExplainRequest) -> Explainer:
        if self._explaining >= MAX_EXPLANATIONS:
            raise Overloaded(
                f"parameters.explain: {self._explaining} requests wait for explanations; try again"
            )
        return Explainer(call.version, found.inputs, call.rows, wanted)

    async def _explain(
        self, explanation: Explainer, outputs: Mapping[str, Array], abstained: Sequence[int]
    ) -> list[Any]:
        self._explaining += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._explainer, explanation.explain, outputs, abstained)
        finally:
            self._explaining -= 1

    def _serving(self) -> tuple[LoadedVersion, ...]:
        """List the versions that answer for the model now, and its shadows."""
        routes = self.engine.routes
        champion = () if routes.champion is None else (routes.champion,)
        return (*champion, *routes.arms.values(), *routes.shadows)

    async def _look_up(
        self, version: LoadedVersion, keys: KeyedRows, others: tuple[LoadedVersion, ...] | None = None
    ) -> ModelInputs:
        """Fetch a version's inputs for rows by name; others: see `look_up`."""
        if self._features is None and keys.entities is not None:
            raise BadRequest(
                "parameters.entities: this platform has no online store; send columns as parameters.request, or tensors"
            )
        begin = time.perf_counter()
        found = await look_up(self._features, self._services, version, keys, others)
        if self.series is not None:
            self.series.looked_up(time.perf_counter() - begin, found.missing)
        return found

    def _record(
        self,
        call: _Call,
        at_us: int,
        found: ModelInputs,
        outputs: Mapping[str, Array],
        write_batch: WriteBatch | None,
    ) -> int | None:
        keys = call.keys
        return self.recorder.record(
            id=call.id, version=call.version.version, arm=call.arm, shadow=False, unit=call.unit, at_us=at_us,
            latency_ms=call.elapsed_ms(), rows=call.rows, inputs=found.inputs, outputs=outputs,
            float32_matrix=call.version.float32_matrix and keys is None, missing=found.missing or None,
            entities=keys.entities if keys is not None else None, write_batch=write_batch,
            trace=call.trace.row() if call.trace is not None else None,
            propensity=call.propensity, in_view=call.version.in_view,
        )  # fmt: skip

    async def _failed(self, request: InferRequest, call: _Call, status: int) -> None:
        """Count a request that its version did not answer, and log it as such; by number it was a trial, which is no evidence."""
        if call.arm == PINNED:
            self._live.failed(call, status)
            return
        if end_of(status) is End.REFUSED and await self._is_mistaken(request, call):
            self._live.mistaken(call, status)
            return
        self._live.failed(call, status)
        entities = call.keys.entities if call.keys is not None else None
        self.recorder.fail(
            Failure(
                id=call.id, version=call.version.version, arm=call.arm, shadow=False, unit=call.unit,
                at_us=self._now_us(call.keys), latency_ms=call.elapsed_ms(),
                rows=call.rows if entities is None else len(entities), entities=entities,
                trace=call.trace.row(status) if call.trace is not None else None, propensity=call.propensity,
            )
        )  # fmt: skip

    async def _is_mistaken(self, request: InferRequest, call: _Call) -> bool:
        """Whether a refused request is the caller's mistake: unless the version that callers go by would answer it.

        For other arms that is the champion; for a champion the one before it, as long as that is loaded.
        """
        reference = call.routes.champion
        if reference is call.version:
            replaced = call.routes.replaced
            reference = None if replaced is None else self.engine.find(replaced)
        if reference is None:
            return True
        trial = replace(call, version=reference, trace=None)
        try:
            found = await self._inputs(request, trial)
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._pool, reference.predict, found.inputs, found.abstained)
        except Exception:  # noqa: BLE001 - whatever fails here, it is not shown that a version would answer
            return True
        return False

    def _now_us(self, keys: KeyedRows | None) -> int:
        if keys is not None and keys.at is not None:
            return epoch_us(keys.at)
        if self._clock is None:
            return time.time_ns() // 1_000
        return epoch_us(self._clock().astimezone(UTC))

    def _offer_to_shadows(self, call: _Call, at_us: int, found: ModelInputs) -> None:
        for shadow in self.engine.routes.shadows:
            if shadow is not call.version and self.shadows.has_room():
                job = ShadowJob(
                    shadow, call.version, call.id, call.unit, at_us, call.rows, found, call.keys, call.traffic
                )
                self.shadows.offer(job)

    def describe(self) -> dict[str, Any]:
        """State of this replica: versions, shadows, log and batches."""
        return {
            **self.engine.describe(),
            "shadows": self.shadows.describe(),
            "log": self.recorder.describe(),
            "batches": self._batches(),
        }

    def statistics(self, number: int | None = None) -> dict[str, Any]:
        """Triton's statistics of all loaded versions, or of version `number`.

        Raises: NotFound if that version is not loaded.
        """
        loaded = [self.engine.find(each) for each in (self.engine.loaded if number is None else [number])]
        found = [
            version.statistics.describe(
                self.engine.model,
                version.version,
                batches=version.batcher.batches if version.batcher is not None else 0,
                waited_s=version.batcher.waited_s if version.batcher is not None else 0.0,
            )
            for version in loaded
            if version is not None
        ]
        if number is not None and not found:
            raise NotFound(f"model {self.engine.model!r} has no version {number} loaded")
        return {"model_stats": found}

    def _batches(self) -> dict[str, dict[str, int]]:
        """Counts of batches and of their rows, by loaded version that makes batches."""
        loaded = [self.engine.find(number) for number in self.engine.loaded]
        return {
            str(version.version): {"batches": version.batcher.batches, "rows": version.batcher.rows}
            for version in loaded
            if version is not None and version.batcher is not None
        }

    async def close(self) -> None:
        """Stop the shadows and the engine, and write the queued failures."""
        await self.shadows.close()
        self.pending_champion.close()
        self.recorder.flush()
        await asyncio.get_running_loop().run_in_executor(None, self.engine.stop)
        for pool in (self._pool, self._loader, self._explainer):
            pool.shutdown(wait=False, cancel_futures=True)
        if self.series is not None:
            self.series.close()


@dataclass(slots=True)
class _Call:
    """A request with its chosen version; rows: 1 until it was checked against the signature."""

    id: str
    unit: str | None
    arm: str
    version: LoadedVersion
    begin: float
    routes: Routes[LoadedVersion]
    trace: RequestTrace | None
    keys: KeyedRows | None = None
    rows: int = 1
    explanation: Explainer | None = None

    @property
    def traffic(self) -> Traffic | None:
        """Split that the version was chosen by."""
        return self.routes.traffic

    @property
    def propensity(self) -> float | None:
        """Chance of the arm at the choice; None for a version that the caller named."""
        return self.routes.chance(self.arm)

    @property
    def number(self) -> int:
        """Number of the version that was chosen."""
        return self.version.version

    def elapsed_ms(self) -> float:
        """Milliseconds since the request came in."""
        return (time.perf_counter() - self.begin) * 1e3

    def mark(self, stage: str) -> None:
        """Note in the request's trace, if it has one, that a stage ends now."""
        if self.trace is not None:
            self.trace.mark(stage)


def _status_of(error: BaseException) -> int:
    """HTTP status that an error becomes; of a caller who left or ran out of time, none that is the server's fault."""
    if isinstance(error, PredictorError):
        return error.status
    return _CALLER_GONE if isinstance(error, asyncio.CancelledError) else _FAULT


def _response_parameters(call: _Call, found: ModelInputs, outputs: Mapping[str, Array]) -> dict[str, Any]:
    """The response's parameters: the arm, the most probable class, and by key the missing features and the policy applied."""
    parameters: dict[str, Any] = {"arm": call.arm}
    if call.version.classes:
        parameters["class"] = call.version.most_probable(outputs)
    if call.keys is not None:
        parameters["missing"] = found.missing
        if any(found.missing):
            parameters["missing_policy"] = call.version.missing.action
        if found.abstained:
            parameters["abstained"] = list(found.abstained)
    return parameters
