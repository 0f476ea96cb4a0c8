"""Which version answers a request: the split's, or the one that the request names."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Final

from toque.clusters.telemetry.tracing import current_request
from toque.functions.prediction_log import PINNED
from toque.ray_apps.generative.answering.call import Call
from toque.ray_apps.generative.load import LoadMeter
from toque.ray_apps.generative.openai.errors import ApiRefusal
from toque.ray_apps.generative.openai.requests import CHAT, COMPLETION, EMBEDDING, RESPONSE, Ask
from toque.ray_apps.generative.versions import GenerativeVersion
from toque.ray_apps.predictor.inference.live import LiveCounter
from toque.ray_apps.predictor.protocol.errors import NotFound
from toque.ray_apps.predictor.versions.follower import VersionFollower

__all__ = ["VersionChooser"]

_PREFIX: Final = {CHAT: "chatcmpl-", COMPLETION: "cmpl-", EMBEDDING: "embd-", RESPONSE: "resp_"}


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
        call_id = _PREFIX[RESPONSE if ask.as_response else ask.kind] + os.urandom(16).hex()
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
