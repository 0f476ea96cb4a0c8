"""Answering: one request in, one response out, whatever door it came through."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from functions.prediction_log import micros
from ray_apps.predictor.datatypes import Array
from ray_apps.predictor.engine import Engine
from ray_apps.predictor.errors import BadRequest, NotFound, NotReady
from ray_apps.predictor.keys import Assembled, FeatureSource, KeyedRows, ServiceWatch, look_up, parse_keys
from ray_apps.predictor.loaded import LoadedVersion
from ray_apps.predictor.protocol import InferRequest, InferResponse
from ray_apps.predictor.recording import Recorder
from ray_apps.predictor.shadows import ShadowJob, Shadows

__all__ = ["Predictor"]


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
        self._services = ServiceWatch(features) if features is not None else None
        self._clock, self._replay = clock, replay
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="predict")

    async def infer(self, request: InferRequest, *, number: int | None = None) -> InferResponse:
        """Choose a version, get its inputs, predict, log, and hand a copy to the shadows.

        number: a version asked for by number, past the split.
        Raises: PredictorError with the status and the words for the caller.
        """
        begin = time.perf_counter()
        prediction_id = request.id or os.urandom(16).hex()
        unit = _unit(request.parameters)
        arm, version = await self._choose(unit or prediction_id, number)
        version.check_outputs(request.outputs)
        found, keys = await self._inputs(request, version)
        rows = version.check(found.inputs)
        outputs = await self._predict(version, found.inputs)
        at_us = self._now_us(keys)
        self.recorder.record(
            id=prediction_id, version=version.version, arm=arm, shadow=False, unit=unit, at_us=at_us,
            latency_ms=(time.perf_counter() - begin) * 1e3, rows=rows, inputs=found.inputs, outputs=outputs,
            missing=found.missing or None, entities=keys.entities if keys is not None else None,
        )  # fmt: skip
        if self.engine.routes.shadows and number is None:
            self._offer(version, prediction_id, unit, at_us, found, keys)
        parameters: dict[str, Any] = {"arm": arm}
        if keys is not None:
            parameters["missing"] = found.missing
        return InferResponse(self.engine.model, version.version, outputs, prediction_id, parameters)

    async def _choose(self, unit: str, number: int | None) -> tuple[str, LoadedVersion]:
        routes = self.engine.routes
        if number is None:
            arm, version = routes.choose(unit)
            if version is None:
                raise NotReady(f"model {self.engine.model!r} has no champion that is loaded; try again soon")
            return arm, version
        found = self.engine.find(number)
        self._refuse_rejected(number)
        if found is None:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._pool, self.engine.load, number)
        return routes.arm_of(number), found

    def _refuse_rejected(self, number: int) -> None:
        record = self.engine.view.versions.get(number) if self.engine.view is not None else None
        if record is not None and record.status == "REJECTED" and not self._routed(number):
            raise NotFound(f"version {number} of {self.engine.model!r} was rejected and is not served")

    def _routed(self, number: int) -> bool:
        traffic = self.engine.routes.traffic
        return traffic is not None and number in traffic.versions

    async def _inputs(
        self, request: InferRequest, version: LoadedVersion
    ) -> tuple[Assembled, KeyedRows | None]:
        keys = None
        if request.parameters:
            keys = parse_keys(request.parameters, replay=self._replay)
        if keys is None:
            return Assembled(request.inputs, []), None
        if request.inputs:
            raise BadRequest("inputs: give either tensors or parameters.entities, not both")
        return await self._look_up(version, keys), keys

    async def _look_up(self, version: LoadedVersion, keys: KeyedRows) -> Assembled:
        if self._features is None or self._services is None:
            raise BadRequest("parameters.entities: this platform has no online store; send tensors")
        return await look_up(self._features, self._services, version, keys, keys.at)

    async def _predict(self, version: LoadedVersion, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        if version.inline:
            return version.predict(inputs)
        return await asyncio.get_running_loop().run_in_executor(self._pool, version.predict, inputs)

    def _now_us(self, keys: KeyedRows | None) -> int:
        if keys is not None and keys.at is not None:
            return micros(keys.at)
        if self._clock is None:
            return time.time_ns() // 1_000
        return micros(self._clock().astimezone(UTC))

    def _offer(
        self,
        answered_by: LoadedVersion,
        prediction_id: str,
        unit: str | None,
        at_us: int,
        found: Assembled,
        keys: KeyedRows | None,
    ) -> None:
        for shadow in self.engine.routes.shadows:
            if shadow is not answered_by:
                job = ShadowJob(
                    shadow, answered_by, prediction_id, unit, at_us, found.inputs, keys, found.missing or None
                )
                self.shadows.offer(job)

    def describe(self) -> dict[str, Any]:
        """The state of this replica: versions, shadows, log."""
        return {
            **self.engine.describe(),
            "shadows": self.shadows.describe(),
            "log": {"written": self.recorder.written, "dropped": self.recorder.dropped},
        }

    async def close(self) -> None:
        """Stop the engine and the shadows."""
        await self.shadows.close()
        await asyncio.get_running_loop().run_in_executor(None, self.engine.stop)
        self._pool.shutdown(wait=False, cancel_futures=True)


def _unit(parameters: Mapping[str, Any]) -> str | None:
    unit = parameters.get("unit")
    if unit is None or isinstance(unit, str):
        return unit
    if isinstance(unit, int) and not isinstance(unit, bool):
        return str(unit)
    raise BadRequest(f"parameters.unit: expected a string or an integer, got {unit!r:.80}")
