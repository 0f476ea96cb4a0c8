"""One request for a language model on its way: the version that was chosen for it, and what is counted of it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Final

from toque.clusters.telemetry.tracing import RequestTrace
from toque.functions.generative import Finding
from toque.functions.generative.engines import Lease, Slot
from toque.ray_apps.admission.request_limits import Reservation
from toque.ray_apps.generative.openai.answers import AnswerRecord
from toque.ray_apps.generative.openai.requests import CHAT, COMPLETION, EMBEDDING, Ask
from toque.ray_apps.generative.series import Load
from toque.ray_apps.generative.versions import GenerativeVersion
from toque.ray_apps.predictor.versions.routes import Routes
from toque.registry import ServiceTier
from toque.registry.models.traffic import Traffic

__all__ = ["ENGINE_S", "Call"]

ENGINE_S: Final = 10.0
"""How long a request waits for an engine that is being started."""

_OPERATIONS: Final = {CHAT: "chat", COMPLETION: "text_completion", EMBEDDING: "embeddings"}


@dataclass(slots=True)
class Call:
    """A request with its chosen version.

    unit: whom the split assigned, the one that was named, else the conversation. used_tokens: those it came to; pieces: of its
    stream; first_token_ms: from the request to the first token, None before it; is_counted: whether log and counts have it; findings: of its
    version's guardrails. load: what it is of the replica's. tier: by which it waits for a slot of the engine; slot: the one that it has.
    calls_by_schema: whether the engine writes a call of a tool as JSON, in place of an answer.
    """

    id: str
    ask: Ask
    unit: str | None
    arm: str
    version: GenerativeVersion
    routes: Routes[GenerativeVersion]
    begin: float
    lease: Lease
    trace: RequestTrace | None
    load: Load
    reservation: Reservation | None = field(default=None)
    used_tokens: int = 0
    pieces: int = 0
    first_token_ms: float | None = None
    is_counted: bool = False
    findings: tuple[Finding, ...] = ()
    tier: ServiceTier = "default"
    slot: Slot | None = None
    calls_by_schema: bool = False

    @property
    def traffic(self) -> Traffic | None:
        """Split that the version was chosen by."""
        return self.routes.traffic

    @property
    def number(self) -> int:
        """Number of the version that was chosen."""
        return self.version.version

    def elapsed_ms(self) -> float:
        """Milliseconds since the request came in."""
        return (time.perf_counter() - self.begin) * 1e3

    def heard(self, answer: AnswerRecord) -> bool:
        """Note when the first token came, by which versions are compared: how long the rest takes is as long as the answer is.

        Returns: whether it has come.
        """
        has_come = math.isfinite(answer.first_token_s)
        if has_come:
            self.first_token_ms = answer.first_token_s * 1e3
            self.load.first_token(answer.first_token_s)
        return has_come

    def describe(self, answer: AnswerRecord) -> None:
        """Say in the request's trace what was asked and answered, by OpenTelemetry's conventions for generative models."""
        if self.trace is None:
            return
        self.trace.attributes |= {
            "gen_ai.operation.name": _OPERATIONS[self.ask.kind],
            "gen_ai.provider.name": self.lease.process.engine.name,
            "gen_ai.request.model": self.ask.model,
            "gen_ai.response.model": str(self.version),
            "gen_ai.response.id": self.id,
            "gen_ai.usage.input_tokens": answer.prompt_tokens,
            "gen_ai.usage.output_tokens": answer.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": answer.cached_tokens,
        }
        if answer.finish_reason:
            self.trace.attributes["gen_ai.response.finish_reasons"] = [answer.finish_reason]

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers of the response that say what answered."""
        return [
            (b"x-toque-prediction-id", self.id.encode()),
            (b"x-toque-version", str(self.number).encode()),
            (b"x-toque-arm", self.arm.encode()),
        ]

    def free_slot(self) -> None:
        """Give back the slot, as the engine is done with the request, however slowly its caller reads."""
        if self.slot is not None:
            self.slot.release()

    def close(self) -> None:
        """Give back slot and engine, and the tokens that were reserved and not used."""
        self.free_slot()
        self.lease.release()
        self.load.close()
        if self.reservation is not None:
            self.reservation.settle(self.used_tokens)
