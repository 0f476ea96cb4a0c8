"""Answers of a registered version to many requests, by an engine of its own that ends with them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from functions.evaluation.errors import EvaluationError
from functions.evaluation.language.evaluation_set import EvaluationRow
from functions.generative import (
    ADAPTER,
    CHAT_TEMPLATE,
    WEIGHTS,
    EngineSettings,
    GenerativeError,
    Prompt,
    engine_files,
    is_generative,
    read_prompt,
    read_settings,
)
from functions.generative.engines import EngineDown, EngineProcess, EngineSpec, engine_environment, engine_of
from registry import ModelVersion, Registry

__all__ = ["AskedVersion", "answers_of", "fetched"]

_OK, _FAULT = 200, 500
_START_S: Final = 300.0
_ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True)
class AskedVersion:
    """A version whose files are here. weights of equal files share a process, by `engine_key`."""

    name: str
    prompt: Prompt
    settings: EngineSettings
    spec: EngineSpec
    engine_key: tuple[Any, ...]


def fetched(registry: Registry, version: ModelVersion, folder: Path, *, threads: int) -> AskedVersion:
    """Fetch a version's files into a folder. Raises: EvaluationError if it is no language model's; ArtifactRefused."""
    if not is_generative(version) or WEIGHTS not in version.files:
        raise EvaluationError(f"{version.model}@{version.version} is no version of a language model")
    registry.download(version.model, version.version, to=folder)
    files = engine_files(version)
    settings = read_settings(folder)
    spec = EngineSpec(
        folder / WEIGHTS,
        folder / ADAPTER if ADAPTER in files else None,
        folder / CHAT_TEMPLATE if CHAT_TEMPLATE in files else None,
        settings,
        threads,
    )
    key = (*sorted((name, blob.sha256) for name, blob in files.items()), settings)
    return AskedVersion(f"{version.model}@{version.version}", read_prompt(folder), settings, spec, key)


def answers_of(
    versions: Sequence[AskedVersion],
    rows: Sequence[EvaluationRow],
    *,
    seed: int,
    environment: Mapping[str, str],
) -> list[list[str]]:
    """Have each version answer all rows; those that share an engine have it answer side by side.

    A request that the engine refuses, such as one that is too long, has the answer "". seed: of the sampling, for a prompt that
    says none. environment: of which engines get what they need.
    Raises: EvaluationError if a prompt has no place for a row's variables; EngineDown.
    """
    bodies = [[_body(version, row, seed) for row in rows] for version in versions]
    return asyncio.run(_answers(versions, bodies, engine_environment(environment)))


async def _answers(
    versions: Sequence[AskedVersion], bodies: Sequence[list[dict[str, Any]]], environment: dict[str, str]
) -> list[list[str]]:
    found: dict[int, list[str]] = {}
    for key in dict.fromkeys(
        each.engine_key for each in versions
    ):  # one engine at a time: each holds the weights
        sharing = [place for place, each in enumerate(versions) if each.engine_key == key]
        first = versions[sharing[0]]
        async with _engine(first.spec, environment) as process:
            slots = asyncio.Semaphore(first.settings.slots)
            asked = [_answer(process, slots, body) for place in sharing for body in bodies[place]]
            texts = iter(await asyncio.gather(*asked))
        for place in sharing:
            found[place] = [next(texts) for _ in bodies[place]]
    return [found[place] for place in range(len(versions))]


@asynccontextmanager
async def _engine(spec: EngineSpec, environment: dict[str, str]) -> AsyncIterator[EngineProcess]:
    """Run an engine for as long as it is asked. Raises: EngineDown."""
    with tempfile.TemporaryDirectory(prefix="toque-engine-") as folder:
        log = Path(folder) / "engine.log"
        process = EngineProcess(engine_of("llama.cpp"), spec, log, environment=environment)
        process.start()
        try:
            await process.ready(_START_S)
            yield process
        finally:
            await process.close()


def _body(version: AskedVersion, row: EvaluationRow, seed: int) -> dict[str, Any]:
    try:
        body = version.prompt.request({"messages": row.messages}, row.variables)
    except GenerativeError as error:
        raise EvaluationError(f"{version.name}, row {row.number}: {error}") from error
    body.setdefault("max_tokens", version.settings.max_tokens)
    body.setdefault("seed", (seed + row.number) % (1 << 31))
    return body


async def _answer(process: EngineProcess, slots: asyncio.Semaphore, body: Mapping[str, Any]) -> str:
    """Ask once; an engine that is started anew meanwhile is asked again. Raises: EngineDown."""
    asked = {**body, "model": process.engine.model_name(process.spec)}
    fault: Exception | None = None
    async with slots:
        for _ in range(_ATTEMPTS):
            await process.ready(_START_S)
            try:
                return await _asked(process, asked)
            except (aiohttp.ClientError, EngineDown) as error:
                fault = error
    raise EngineDown(f"{_ATTEMPTS} times it did not answer: {fault}")


async def _asked(process: EngineProcess, body: Mapping[str, Any]) -> str:
    async with process.client.post(f"{process.base}/v1/chat/completions", json=body) as answer:
        document = await answer.json(content_type=None)
        if answer.status >= _FAULT:
            raise EngineDown(f"status {answer.status}: {document!r:.200}")
        if answer.status != _OK:
            return ""
    text: str | None = document["choices"][0]["message"].get("content")
    return text or ""
