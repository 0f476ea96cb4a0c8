"""Answering: one request in, one response out, whatever door it came through."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from functions.prediction_log import PINNED, epoch_us
from ray_apps.predictor.inference.caller import Caller
from ray_apps.predictor.inference.explain import Explainer, ExplainRequest, parse_explain
from ray_apps.predictor.inference.keys import (
    FeatureSource,
    KeyedRows,
    ModelInputs,
    ServiceRefresher,
    look_up,
    parse_keys,
)
from ray_apps.predictor.inference.recording import Failure, Recorder
from ray_apps.predictor.inference.shadows import ShadowJob, Shadows
from ray_apps.predictor.protocol.datatypes import Array
from ray_apps.predictor.protocol.errors import BadRequest, NotFound, NotReady, Overloaded
from ray_apps.predictor.protocol.json import InferRequest, InferResponse
from ray_apps.predictor.versions.engine import Engine
from ray_apps.predictor.versions.loaded import LoadedVersion
from ray_apps.predictor.write_coalescing import WriteBatch
from registry.models.traffic import is_shadowed

__all__ = ["Predictor"]

MAX_ATTRIBUTES = 64
MAX_ATTRIBUTE = 256
MAX_EXPLANATIONS = 16
"""So many requests of a model may wait for their explanation; more are told to come again."""


class Predictor:
    """Answers for one model with the versions of an engine.

    features: the feature store, None if requests by key cannot be served. clock: the platform's time.
    replay: whether that clock is a replayed one, so that a request may say its own moment.
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
    ) -> None:
        self.engine, self.recorder = engine, recorder
        self.shadows = Shadows(recorder, self._look_up, limit=shadow_limit)
        self._features = features
        self._services = ServiceRefresher(features) if features is not None else None
        self._clock, self._replay = clock, replay
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="predict")
        self._explainer = ThreadPoolExecutor(1, thread_name_prefix="explain")  # never before an answer
        self._explaining = 0

    async def infer(
        self, request: InferRequest, *, number: int | None = None, caller: Caller | None = None
    ) -> InferResponse:
        """Choose a version, get its inputs, predict, log, and hand a copy to the shadows.

        number: a version asked for by number, past the split. caller: who may go away meanwhile.
        Raises: PredictorError with the status and the words for the caller.
        """
        prediction_id = request.id or os.urandom(16).hex()
        unit, attributes = _who(request.parameters) if request.parameters else (None, None)
        begin = time.perf_counter()
        arm, version = await self._choose(unit or prediction_id, attributes, number)
        call = _Call(prediction_id, unit, arm, version, begin)
        try:
            found = await self._inputs(request, call)
            checked = time.perf_counter()
            work = version.answer(found.inputs, call.rows, found.abstained, self._pool)
            outputs = await (work if caller is None or version.inline else caller.run_while_connected(work))
        except BaseException:  # a caller whose time is up, or who has gone, included
            version.statistics.fail(time.perf_counter() - begin)
            if number is None:  # who asks for a version by number tries it out: no evidence against it
                self._fail(call)
            raise
        version.statistics.succeed(call.rows, input_s=checked - begin, infer_s=time.perf_counter() - checked)
        at_us = self._now_us(call.keys)
        self._record(call, at_us, found, outputs, None if caller is None else caller.write_batch)
        if self.engine.routes.shadows and number is None and is_shadowed(arm):
            self._offer(call, at_us, found)
        said = _said(call, found)
        if call.explanation is not None:
            explaining = self._explain(call.explanation, outputs, found.abstained)
            said["explanation"] = await (
                explaining if caller is None else caller.run_while_connected(explaining)
            )
        return InferResponse(self.engine.model, version.version, outputs, prediction_id, said)

    def pinned(self, arm: str) -> int:
        """The version of an arm that a request asks for by name, past the split. Raises: NotFound."""
        traffic = self.engine.routes.traffic
        arms = {one.name: one.version for one in traffic.arms} if traffic is not None else {}
        if arm not in arms:
            raise NotFound(
                f"X-Toque-Arm: {self.engine.model!r} has no arm {arm[:80]!r} now; it has {[*arms]}"
            )
        return arms[arm]

    async def _choose(
        self, unit: str, attributes: Mapping[str, str] | None, number: int | None
    ) -> tuple[str, LoadedVersion]:
        routes = self.engine.routes
        if number is None:
            arm, version = routes.choose(unit, attributes)
            if version is None:
                raise NotReady(f"model {self.engine.model!r} has no champion that is loaded; try again soon")
            return arm, version
        found = self.engine.find(number)
        self._refuse_rejected(number)
        if found is None:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._pool, self.engine.load, number)
        return PINNED, found

    def _refuse_rejected(self, number: int) -> None:
        record = self.engine.view.versions.get(number) if self.engine.view is not None else None
        if record is not None and record.status == "REJECTED" and not self._routed(number):
            raise NotFound(f"version {number} of {self.engine.model!r} was rejected and is not served")

    def _routed(self, number: int) -> bool:
        traffic = self.engine.routes.traffic
        return traffic is not None and number in traffic.versions

    async def _inputs(self, request: InferRequest, call: _Call) -> ModelInputs:
        """The version's inputs, compared with its signature."""
        call.version.check_outputs(request.outputs)
        if request.parameters:
            call.keys = parse_keys(request.parameters, replay=self._replay)
        if call.keys is None:
            found = ModelInputs(request.inputs, [])
        elif request.inputs:
            raise BadRequest("inputs: give either tensors or parameters.entities, not both")
        else:
            found = await self._look_up(call.version, call.keys)
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

    async def _look_up(self, version: LoadedVersion, keys: KeyedRows) -> ModelInputs:
        if self._features is None or self._services is None:
            raise BadRequest("parameters.entities: this platform has no online store; send tensors")
        return await look_up(self._features, self._services, version, keys, keys.at)

    def _record(
        self,
        call: _Call,
        at_us: int,
        found: ModelInputs,
        outputs: Mapping[str, Array],
        write_batch: WriteBatch | None,
    ) -> None:
        keys = call.keys
        self.recorder.record(
            id=call.id, version=call.version.version, arm=call.arm, shadow=False, unit=call.unit, at_us=at_us,
            latency_ms=call.passed_ms(), rows=call.rows, inputs=found.inputs, outputs=outputs,
            float32_matrix=call.version.float32_matrix and keys is None, missing=found.missing or None,
            entities=keys.entities if keys is not None else None, write_batch=write_batch,
        )  # fmt: skip

    def _fail(self, call: _Call) -> None:
        entities = call.keys.entities if call.keys is not None else None
        self.recorder.fail(
            Failure(
                id=call.id, version=call.version.version, arm=call.arm, shadow=False, unit=call.unit,
                at_us=self._now_us(call.keys), latency_ms=call.passed_ms(),
                rows=call.rows if entities is None else len(entities), entities=entities,
            )
        )  # fmt: skip

    def _now_us(self, keys: KeyedRows | None) -> int:
        if keys is not None and keys.at is not None:
            return epoch_us(keys.at)
        if self._clock is None:
            return time.time_ns() // 1_000
        return epoch_us(self._clock().astimezone(UTC))

    def _offer(self, call: _Call, at_us: int, found: ModelInputs) -> None:
        for shadow in self.engine.routes.shadows:
            if shadow is not call.version and self.shadows.has_room():
                job = ShadowJob(shadow, call.version, call.id, call.unit, at_us, call.rows, found, call.keys)
                self.shadows.offer(job)

    def describe(self) -> dict[str, Any]:
        """The state of this replica: versions, shadows, log."""
        return {
            **self.engine.describe(),
            "shadows": self.shadows.describe(),
            "log": self.recorder.describe(),
            "batches": self._batches(),
        }

    def statistics(self, number: int | None = None) -> dict[str, Any]:
        """Triton's statistics of the versions that are loaded here, or of one of them.

        Raises: NotFound if that one is not loaded.
        """
        loaded = [self.engine.find(one) for one in (self.engine.loaded if number is None else [number])]
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
        """Of each loaded version that makes some: how many, and of how many rows together."""
        loaded = [self.engine.find(number) for number in self.engine.loaded]
        return {
            str(version.version): {"batches": version.batcher.batches, "rows": version.batcher.rows}
            for version in loaded
            if version is not None and version.batcher is not None
        }

    async def close(self) -> None:
        """Stop the engine and the shadows."""
        await self.shadows.close()
        self.recorder.flush()
        await asyncio.get_running_loop().run_in_executor(None, self.engine.stop)
        for pool in (self._pool, self._explainer):
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass(slots=True)
class _Call:
    """A request that a version was chosen for; rows: 1 until it was compared with the signature."""

    id: str
    unit: str | None
    arm: str
    version: LoadedVersion
    begin: float
    keys: KeyedRows | None = None
    rows: int = 1
    explanation: Explainer | None = None

    def passed_ms(self) -> float:
        """Since it was begun."""
        return (time.perf_counter() - self.begin) * 1e3


def _said(call: _Call, found: ModelInputs) -> dict[str, Any]:
    """The response's parameters: the arm; by key what was missing, and what was done about it."""
    parameters: dict[str, Any] = {"arm": call.arm}
    if call.keys is not None:
        parameters["missing"] = found.missing
        if any(found.missing):
            parameters["missing_policy"] = call.version.missing.action
        if found.abstained:
            parameters["abstained"] = list(found.abstained)
    return parameters


def _who(parameters: Mapping[str, Any]) -> tuple[str | None, Mapping[str, str] | None]:
    """What decides who answers: the unit, for the split, and the attributes, for the rules before it."""
    attributes = parameters.get("attributes")
    if attributes is not None:
        _check_attributes(attributes)
    return _unit(parameters), attributes


def _check_attributes(attributes: Any) -> None:
    """Always, whether or not there are rules: a change of the policy must not make a request a bad one."""
    if not isinstance(attributes, dict) or len(attributes) > MAX_ATTRIBUTES:
        raise BadRequest(
            f"parameters.attributes: expected an object of at most {MAX_ATTRIBUTES} texts, as in "
            f'{{"country": "NL"}}, got {attributes!r:.80}'
        )
    for name, value in attributes.items():
        if not isinstance(value, str) or len(value) > MAX_ATTRIBUTE:
            raise BadRequest(
                f"parameters.attributes.{name:.80}: expected a text of at most {MAX_ATTRIBUTE} characters, got {value!r:.80}"
            )


def _unit(parameters: Mapping[str, Any]) -> str | None:
    unit = parameters.get("unit")
    if unit is None or isinstance(unit, str):
        return unit
    if isinstance(unit, int) and not isinstance(unit, bool):
        return str(unit)
    raise BadRequest(f"parameters.unit: expected a string or an integer, got {unit!r:.80}")
