"""A language model with a log of answers, made of the records that the door writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from toque.functions.generative import Prompt, register_generative
from toque.functions.prediction_log import LABELS_TABLE, Label, encode_labels, epoch_us, predictions_table
from toque.functions.prediction_log.writing.columns import label_columns, large_columns, prediction_columns
from toque.functions.runtime import Context
from toque.functions.runtime.receipt import TokenPrice
from toque.ray_apps.generative.answering.recording import (
    IN_VIEW,
    LoggedRow,
    request_tensors,
    response_tensors,
)
from toque.ray_apps.generative.openai.answers import AnswerRecord
from toque.ray_apps.generative.openai.requests import CHAT, Ask
from toque.ray_apps.predictor.inference.recording import Recorder
from toque.registry import ObjectStore, Registry, Table, open_store

MODEL = "support"
START = datetime(2013, 5, 1, tzinfo=UTC)


@dataclass
class Records:
    """A log in memory."""

    payloads: list[bytes] = field(default_factory=list)

    def append(self, payload: bytes) -> int:
        return self.extend([payload])

    def extend(self, payloads: Any) -> int:
        self.payloads += payloads
        return len(self.payloads)


@dataclass
class Talk:
    """A language model of two versions, without an engine: what it answers is told. now: the platform's clock."""

    store: ObjectStore
    now: datetime = START
    records: Records = field(default_factory=Records)

    def clock(self) -> datetime:
        return self.now

    def context(self) -> Context:
        return Context(self.store, self.store.url, clock=self.clock, actor="ada")

    def registry(self) -> Registry:
        return Registry(self.store, actor="ada", clock=self.clock)

    def say(
        self,
        name: str,
        text: str | None,
        *,
        asked: str = "What is it?",
        version: int = 1,
        arm: str = "champion",
        at: datetime | None = None,
        tokens: tuple[int, int] = (20, 5),
        first_token_s: float = 0.05,
        price: TokenPrice | None = None,
        keep_texts: float = 1.0,
    ) -> None:
        """Log an answer; text: None for a call of a tool."""
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if text is None:
            message |= {"tool_calls": [{"id": "a", "type": "function", "function": {"name": "look"}}]}
        answer = AnswerRecord(
            message, "stop", prompt_tokens=tokens[0], completion_tokens=tokens[1], first_token_s=first_token_s,
            between_tokens_s=0.01,
        )  # fmt: skip
        body = {"model": MODEL, "messages": [{"role": "user", "content": asked}]}
        ask = Ask(CHAT, MODEL, None, body, None, None)
        row = LoggedRow.of(
            name, request_tensors(ask), response_tensors(answer), answer, price=price, keep_texts=keep_texts
        )
        Recorder(MODEL, self.records).record(
            id=name, version=version, arm=arm, shadow=arm == "shadow", unit=None, at_us=epoch_us(at or self.now),
            latency_ms=80.0, rows=1, inputs=row.inputs, outputs=row.outputs, in_view=IN_VIEW,
        )  # fmt: skip

    def drain(self) -> None:
        """Move what was logged into the tables."""
        payloads, self.records.payloads = self.records.payloads, []
        found = [(predictions_table(MODEL), prediction_columns(payloads))]
        found.append((f"predictions_large/{MODEL}", large_columns(payloads)))
        for name, tables in found:
            rows = tables.get(MODEL)
            if rows is not None and rows.num_rows:
                Table(self.store, name).append(rows, partition_by=["day"], merge_schema=True)

    def label(self, name: str, label: Any) -> None:
        rows = label_columns([encode_labels([Label(name, label, self.now, self.now)])])
        Table(self.store, LABELS_TABLE).append(rows, partition_by=["day"], merge_schema=True)

    def scores(self) -> list[dict[str, Any]]:
        table = Table(self.store, f"scores/{MODEL}")
        rows: pa.Table = table.read() if table.exists() else pa.table({})
        return sorted(rows.to_pylist(), key=lambda row: (row["scorer"], row["prediction_id"], row["shadow"]))

    def later(self, minutes: float) -> None:
        self.now += timedelta(minutes=minutes)


@pytest.fixture
def talk(tmp_path: Path) -> Talk:
    return new_talk(tmp_path)


def new_talk(folder: Path) -> Talk:
    """Make a store in a folder, with the two versions; the first is the champion."""
    made = Talk(open_store(f"file://{folder}/store"))
    weights = folder / "weights.gguf"
    weights.write_bytes(b"GGUF")
    registry = made.registry()
    register_generative(registry, MODEL, weights=weights)
    register_generative(registry, MODEL, prompt=Prompt(parameters={"temperature": 0}), keep=1)
    registry.promote(MODEL, 1)
    return made
