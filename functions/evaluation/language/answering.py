"""Answers of a registered version to many requests, and a judge's verdicts on pairs of answers, each in both orders.

A version is asked through an engine of its own, which ends with the requests.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import aiohttp
import pyarrow as pa

from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.language.evaluation_set import EvaluationRow
from toque.functions.evaluation.language.judge import (
    AGREEMENT,
    PREFERENCES,
    Judge,
    JudgeAgreement,
    Preference,
    chosen,
)
from toque.functions.generative import (
    ADAPTER,
    CHAT_TEMPLATE,
    WEIGHTS,
    EngineSettings,
    GenerativeError,
    Prompt,
    check_answer,
    check_request,
    engine_files,
    is_generative,
    read_prompt,
    read_settings,
)
from toque.functions.generative.engines import (
    EngineDown,
    EngineProcess,
    EngineSpec,
    Patience,
    engine_environment,
    engine_of,
)
from toque.registry import ModelVersion, Registry

_OK, _FAULT = 200, 500
_START_S: Final = 300.0  # for an engine to be ready
_ATTEMPTS: Final = 3
_JUDGE_VARIABLES: Final = frozenset({"question", "first", "second"})  # of a judge's prompt
_HUNG_S: Final = 300.0
"""Nobody waits for these answers: an engine that is silent for less is on a busy machine, and would lose what it is at."""


@dataclass(frozen=True, slots=True)
class AskedVersion:
    """A version whose files are here. weights of equal files share a process, by `engine_key`."""

    name: str
    prompt: Prompt
    settings: EngineSettings
    spec: EngineSpec
    engine_key: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class EngineAnswer:
    """What came of a request. refused: why the engine did not take it, or a guardrail stopped it or its answer; None: nothing did."""

    message: Mapping[str, Any]
    finish_reason: str | None = None
    prompt_tokens: int = 0
    answer_tokens: int = 0
    refused: str | None = None

    @property
    def text(self) -> str:
        """The answer's text; empty where there is none, as of a call of tools."""
        return self.message.get("content") or ""


@dataclass(frozen=True, slots=True)
class RowRequest:
    """A row as the engine is asked for it. refused: by which guardrail it is not, None if it is."""

    body: dict[str, Any]
    refused: str | None = None


def fetched(registry: Registry, version: ModelVersion, folder: Path, *, threads: int) -> AskedVersion:
    """Fetch a version's files into a folder. Raises: EvaluationError if it is no language model's; ArtifactRefused."""
    if not is_generative(version) or WEIGHTS not in version.files:
        raise EvaluationError(
            f"{version.model}@{version.version} is no version of a language model with weights as GGUF, which llama.cpp reads"
        )
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

    A request that the engine or a guardrail refuses, such as one that is too long, has the answer "". seed: of the sampling, for a prompt that
    says none. environment: of which engines get what they need.
    Raises: EvaluationError if a prompt has no place for a row's variables; EngineDown.
    """
    requests = [[prepare(version, row, seed) for row in rows] for version in versions]
    return asyncio.run(_answers(versions, requests, engine_environment(environment)))


async def _answers(
    versions: Sequence[AskedVersion], requests: Sequence[list[RowRequest]], environment: dict[str, str]
) -> list[list[str]]:
    found: dict[int, list[str]] = {}
    for key in dict.fromkeys(
        each.engine_key for each in versions
    ):  # one engine at a time: each holds the weights
        sharing = [place for place, each in enumerate(versions) if each.engine_key == key]
        first = versions[sharing[0]]
        async with running_engine(first.spec, environment) as process:
            slots = asyncio.Semaphore(first.settings.slots)
            asked = [
                ask(versions[place], process, slots, each) for place in sharing for each in requests[place]
            ]
            texts = iter([answer.text for answer in await asyncio.gather(*asked)])
        for place in sharing:
            found[place] = [next(texts) for _ in requests[place]]
    return [found[place] for place in range(len(versions))]


@asynccontextmanager
async def running_engine(spec: EngineSpec, environment: dict[str, str]) -> AsyncIterator[EngineProcess]:
    """Run an engine for as long as it is asked. Raises: EngineDown."""
    with tempfile.TemporaryDirectory(prefix="toque-engine-") as folder:
        log = Path(folder) / "engine.log"
        process = EngineProcess(
            engine_of("llama.cpp"), spec, log, environment=environment, patience=Patience(hung_s=_HUNG_S)
        )
        process.start()
        try:
            await process.ready(_START_S)
            yield process
        finally:
            await process.close()


def prepare(version: AskedVersion, row: EvaluationRow, seed: int) -> RowRequest:
    """Make the request from a row, by the version's guardrails and prompt. Raises: EvaluationError for the row's variables."""
    checked = check_request(version.prompt.guardrails, {"messages": row.messages, "variables": row.variables})
    if checked.refused is not None:
        return RowRequest({}, f"guardrail {checked.refused.rule!r}")
    variables = checked.body.pop("variables")
    try:
        body = version.prompt.request(checked.body, variables)
    except GenerativeError as error:
        raise EvaluationError(f"{version.name}, row {row.number}: {error}") from error
    body.setdefault("max_tokens", version.settings.max_tokens)
    body.setdefault("seed", (seed + row.number) % (1 << 31))
    return RowRequest(body)


async def ask(
    version: AskedVersion, process: EngineProcess, slots: asyncio.Semaphore, request: RowRequest
) -> EngineAnswer:
    """Ask once, and check the answer; an engine that is started anew meanwhile is asked again. Raises: EngineDown."""
    if request.refused is not None:
        return EngineAnswer({}, refused=request.refused)
    asked = {**request.body, "model": process.engine.model_name(process.spec)}
    fault: Exception | None = None
    async with slots:
        for _ in range(_ATTEMPTS):
            await process.ready(_START_S)
            try:
                return _checked(version, await _asked(process, asked))
            except (aiohttp.ClientError, EngineDown) as error:
                fault = error
    raise EngineDown(f"{_ATTEMPTS} times it did not answer: {fault}")


def _checked(version: AskedVersion, answer: EngineAnswer) -> EngineAnswer:
    if answer.refused is not None:
        return answer
    length = version.settings.context_length
    if answer.prompt_tokens >= length:  # an engine may lend a slot the context of others; the door does not
        return EngineAnswer(
            {}, refused=f"context: {answer.prompt_tokens} tokens, and this version takes {length}"
        )
    if not version.prompt.guardrails.after:
        return answer
    checked = check_answer(version.prompt.guardrails, answer.message)
    if checked.refused is None:
        return replace(answer, message=checked.message)
    return replace(
        answer,
        message=checked.message,
        finish_reason="content_filter",
        refused=f"guardrail {checked.refused.rule!r}",
    )


async def _asked(process: EngineProcess, body: Mapping[str, Any]) -> EngineAnswer:
    async with process.client.post(f"{process.base}/v1/chat/completions", json=body) as answer:
        document = await answer.json(content_type=None)
        if answer.status >= _FAULT:
            raise EngineDown(f"status {answer.status}: {document!r:.200}")
        if answer.status != _OK:
            said = document.get("error") if isinstance(document, dict) else document
            return EngineAnswer({}, refused=str(said.get("message") if isinstance(said, dict) else said))
    choice, usage = document["choices"][0], document.get("usage") or {}
    return EngineAnswer(
        choice["message"],
        choice.get("finish_reason"),
        int(usage.get("prompt_tokens") or 0),
        int(usage.get("completion_tokens") or 0),
    )


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to a question."""

    question: str
    first: str
    second: str


def read_pairs(table: pa.Table) -> tuple[list[Pair], list[Preference]]:
    """Read pairs of answers, and which people prefer. Raises: EvaluationError, naming the row and column."""
    columns = ("question", "first", "second", "preferred")
    if missing := [name for name in columns if name not in table.column_names]:
        raise EvaluationError(f"the pairs have columns {table.column_names}, and need {missing}")
    pairs, people = [], []
    for number, row in enumerate(table.select(columns).to_pylist()):
        if row["preferred"] not in PREFERENCES:
            raise EvaluationError(
                f"row {number}: preferred={row['preferred']!r:.80} is not one of {list(PREFERENCES)}"
            )
        pairs.append(Pair(*(str(row[name] or "") for name in columns[:3])))
        people.append(row["preferred"])
    return pairs, people


def choices_of(
    registry: Registry,
    judge: Judge,
    pairs: Sequence[Pair],
    folder: Path,
    *,
    threads: int,
    environment: Mapping[str, str],
) -> list[tuple[Preference | None, Preference | None]]:
    """Have a judge choose of each pair, straight and with the answers in each other's place.

    Raises: EvaluationError if its prompt is not a judge's, or a text is longer than it takes; EngineDown.
    """
    version = fetched(registry, registry.get_version(judge.model, judge.version), folder, threads=threads)
    if lacking := sorted(_JUDGE_VARIABLES - version.prompt.variables.keys()):
        raise EvaluationError(
            f"judge {judge.name}: its prompt has no variables {lacking}; a judge's has them"
        )
    rows = [row for number, pair in enumerate(pairs) for row in _both_orders(number, pair)]
    (said,) = answers_of([version], rows, seed=0, environment=environment)
    read = [chosen(each) for each in said]
    return list(zip(read[::2], read[1::2], strict=True))


def calibrated(registry: Registry, judge: Judge) -> JudgeAgreement:
    """Read how a judge agrees with people, as it was measured. Raises: EvaluationError if it was not, or not well enough."""
    record = registry.get_version(judge.model, judge.version).gates.get(AGREEMENT.name)
    if record is None or record.demand != AGREEMENT.digest:
        raise EvaluationError(
            f"judge {judge.name}: nobody knows how it agrees with people; run calibrate_judge on pairs that people labelled"
        )
    found = JudgeAgreement.model_validate(record.details["agreement"])
    found.require(judge)
    return found


def question_of(row: EvaluationRow) -> str:
    """Text of what was asked last in a row."""
    asked = [
        each.get("content") for each in row.messages if isinstance(each, dict) and each.get("role") == "user"
    ]
    return str(asked[-1]) if asked else ""


def _both_orders(number: int, pair: Pair) -> list[EvaluationRow]:
    orders: list[dict[str, Any]] = [
        {"question": pair.question, "first": one, "second": other}
        for one, other in ((pair.first, pair.second), (pair.second, pair.first))
    ]
    return [EvaluationRow(number, [], variables, "") for variables in orders]


__all__ = [
    "AskedVersion",
    "EngineAnswer",
    "Pair",
    "RowRequest",
    "answers_of",
    "ask",
    "calibrated",
    "choices_of",
    "fetched",
    "prepare",
    "question_of",
    "read_pairs",
    "running_engine",
]
