"""Batch inference of a language model: an engine that is kept full answers the rows of a table, a shard for each commit."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

import orjson
import pyarrow as pa

from toque.functions.evaluation.batch_shards import ShardWork, numbered
from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.language.answering import (
    AskedVersion,
    EngineAnswer,
    ask,
    fetched,
    prepare,
    running_engine,
)
from toque.functions.evaluation.language.evaluation_set import asked_column, read_row
from toque.functions.generative.engines import EngineProcess, engine_environment, scratch_folder
from toque.registry import ModelVersion, Registry
from toque.registry.store import PinnedRows

__all__ = ["ANSWER_COLUMNS", "MOST_SHARD_ROWS", "SHARD_PROMPTS", "PromptScorer"]

SHARD_PROMPTS: Final = 64
"""Rows of a shard by default: what a killed run answers again at most, for each shard that is open."""
MOST_SHARD_ROWS: Final = 5_000
"""A shard's rows and answers are held until it is whole."""
_OPEN_SHARDS: Final = 4
"""So that a long answer, for which its shard waits, does not leave the engine's other slots idle."""
_QUEUED: Final = 2
"""Requests at the engine for each slot: one that ends is followed by one that is there."""
_SCHEMA: Final = pa.schema(
    [
        ("answer", pa.string()),
        ("message", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("answer_tokens", pa.int64()),
        ("refused", pa.string()),
    ]
)
ANSWER_COLUMNS: Final[tuple[str, ...]] = tuple(_SCHEMA.names)
_SEED: Final = 0


class PromptScorer:
    """Answers shards with one version, by an engine of its own that runs until `close`.

    Raises: EvaluationError, ArtifactRefused for its files; EngineDown if the engine does not start.
    """

    def __init__(self, registry: Registry, version: ModelVersion, *, threads: int) -> None:
        self._runner, self._held = asyncio.Runner(), AsyncExitStack()
        try:
            folder = self._held.enter_context(scratch_folder())
            self._asked = fetched(registry, version, folder, threads=threads)
            self._process = self._runner.run(self._start(self._asked))
        except BaseException:
            self.close()
            raise

    def score(self, work: ShardWork, rows: PinnedRows, runs: Sequence[range]) -> Iterator[int]:
        """Answer runs of shards, several shards at once, and append each when it is whole; yields the number of its rows.

        A row that the prompt or the engine does not take has the reason in `refused`, and no answer.
        Raises: EngineDown if the engine does not answer a row three times.
        """
        flow = self._flow(work, rows, runs)
        try:
            while (done := self._runner.run(_next(flow))) is not None:
                yield done
        finally:
            self._runner.run(flow.aclose())

    def close(self) -> None:
        """End the engine, and remove its files."""
        try:
            self._runner.run(self._held.aclose())
        finally:
            self._runner.close()

    async def _start(self, asked: AskedVersion) -> EngineProcess:
        environment = engine_environment(os.environ)
        return await self._held.enter_async_context(running_engine(asked.spec, environment))

    async def _flow(self, work: ShardWork, rows: PinnedRows, runs: Sequence[range]) -> AsyncGenerator[int]:
        places = asyncio.Semaphore(self._asked.settings.slots * _QUEUED)  # first come, first served
        todo = iter([shard for run in runs for shard in run])
        open_shards: set[asyncio.Task[int]] = set()
        try:
            while True:
                while len(open_shards) < _OPEN_SHARDS and (shard := next(todo, None)) is not None:
                    open_shards.add(asyncio.create_task(self._answer_shard(work, rows, shard, places)))
                if not open_shards:
                    return
                done, open_shards = await asyncio.wait(open_shards, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    yield each.result()
        finally:
            for each in open_shards:
                each.cancel()
            await asyncio.gather(*open_shards, return_exceptions=True)

    async def _answer_shard(
        self, work: ShardWork, rows: PinnedRows, shard: int, places: asyncio.Semaphore
    ) -> int:
        first, table = await asyncio.to_thread(_read, work, rows, shard)
        answers = await asyncio.gather(
            *(self._answer(number, row, places) for number, row in enumerate(table.to_pylist(), first))
        )
        kept = numbered(table, (), work.job.keep, first=first)
        columns = pa.Table.from_pylist([_columns(each) for each in answers], _SCHEMA)
        for name in ANSWER_COLUMNS:
            kept = kept.append_column(name, columns.column(name))
        await asyncio.to_thread(work.append, shard, kept)
        return len(answers)

    async def _answer(self, number: int, row: dict[str, Any], places: asyncio.Semaphore) -> EngineAnswer:
        try:
            asked = {name: row[name] for name in (asked_column([*row]), "variables") if name in row}
            request = prepare(self._asked, read_row(number, asked), _SEED)
        except EvaluationError as error:
            return EngineAnswer({}, refused=str(error))
        return await ask(self._asked, self._process, places, request)


async def _next(flow: AsyncGenerator[int]) -> int | None:
    return await anext(flow, None)


def _read(work: ShardWork, rows: PinnedRows, shard: int) -> tuple[int, pa.Table]:
    """Read the rows of a shard; returns the number of the first with them."""
    first, stop = work.rows_of(range(shard, shard + 1))
    names = [asked_column(rows.schema.names), *({"variables"} & set(rows.schema.names)), *work.job.keep]
    pieces = rows.slices(first, stop, rows=stop - first, columns=list(dict.fromkeys(names)))
    return first, pa.concat_tables(pieces)


def _columns(answer: EngineAnswer) -> dict[str, Any]:
    if answer.refused is not None:
        return {"refused": answer.refused, "finish_reason": answer.finish_reason}
    return {
        "answer": answer.message.get("content"),
        "message": orjson.dumps(answer.message).decode(),
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "answer_tokens": answer.answer_tokens,
    }
