"""Prompts of token ids at the door, with a real engine: they are answered as their text is, and rules and log read that text."""

import json
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest

from tests import waiting
from tests.ray_apps.generative.conftest import VLLM, ServedDoor
from toque.functions.generative import EngineSettings, Prompt, register_generative

pytestmark = pytest.mark.skipif(VLLM is not None, reason="the small weights are a GGUF file")
MODEL = "ids"
CONTEXT = 128
TEXTS = ("Write about the ox", "Hällo 🙂 you", "<|im_start|>user\nHi<|im_end|>\n", " ", "a\n\n b")
RULES = {
    "before": [
        {"kind": "deny", "name": "animals", "patterns": [r"\box\b"]},
        {"kind": "personal_data", "action": "redact"},
        {"kind": "deny", "name": "told", "patterns": ["tell"], "action": "flag"},
    ]
}


@pytest.fixture(scope="module")
def ids(served: ServedDoor, small: Path, weights: Path) -> ServedDoor:
    """Version 1 has no rules, version 2 has some, version 3 other weights with a larger vocabulary."""
    settings = EngineSettings(context_length=CONTEXT, slots=2, max_tokens=4)
    register_generative(served.registry, MODEL, weights=small, settings=settings)
    prompt = Prompt.model_validate({"guardrails": RULES})
    register_generative(served.registry, MODEL, keep=1, prompt=prompt)
    register_generative(served.registry, MODEL, weights=weights, settings=settings)
    served.registry.promote(MODEL, 1)
    return served


def complete(served: ServedDoor, prompt: Any, version: int = 1, **options: Any) -> Any:
    asked = {"temperature": 0, "max_tokens": 4} | options
    return served.client().completions.create(model=f"{MODEL}@{version}", prompt=prompt, **asked)


def encode(served: ServedDoor, text: str, version: int = 1) -> list[int]:
    """Token ids of a text, by the engine of a version."""

    async def asked() -> list[int]:
        models = await served.door._models("default")
        found = (await models.get(MODEL)).follower.find(version)
        assert found is not None
        process = found.lease.process
        async with process.client.post(f"{process.base}/tokenize", json={"content": text}) as response:
            tokens: list[int] = (await response.json())["tokens"]
            return tokens

    complete(served, "Hi", version)  # it is ready then
    found: list[int] = served.run(asked())
    return found


def logged(row: list[Any]) -> tuple[Any, dict[str, Any]]:
    """Prompt and parameters of a row."""
    ((prompt, parameters),) = row[10]
    return orjson.loads(prompt), orjson.loads(parameters)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("nests", [False, True])
def test_ids_are_answered_as_their_text_is_and_both_are_logged(ids: ServedDoor, text: str, *, nests: bool):
    tokens = encode(ids, text)
    of_text, before = complete(ids, text), len(ids.log.payloads)
    of_ids = complete(ids, [tokens] if nests else tokens)
    assert of_ids.choices[0].text == of_text.choices[0].text
    assert of_ids.usage.prompt_tokens == of_text.usage.prompt_tokens == len(tokens)
    (row,) = ids.log.rows()[before:]
    prompt, parameters = logged(row)
    assert prompt == text
    assert parameters["prompt_token_ids"] == tokens


def test_a_stream_of_ids_says_the_same(ids: ServedDoor):
    tokens = encode(ids, TEXTS[0])
    pieces = list(complete(ids, tokens, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == complete(ids, TEXTS[0]).choices[0].text


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([5, 2_000], r"prompt\[1\]: expected a token id of this version, 0 to 1999, got 2000"),
        ([(1 << 31) - 1], "0 to 1999, got 2147483647"),
        ([5] * CONTEXT, f"maximum context length is {CONTEXT} tokens"),
        ([2_000] * CONTEXT, f"maximum context length is {CONTEXT} tokens"),
        ([5] * (CONTEXT - 3), f"maximum context length is {CONTEXT} tokens"),
        ([-1], "expected a token id"),
        ([True], "expected a token id"),
        ([1.0], "expected a token id"),
        ([[1], [2]], "one is answered for a request"),
    ],
)
def test_ids_that_a_version_cannot_take_are_refused_and_count_not_against_it(
    ids: ServedDoor, version: int, prompt: Any, words: str
):
    generator = ids.run(ids.run(ids.door._models("default")).get(MODEL))
    before, statuses = len(ids.log.payloads), generator.statuses.copy()
    failures = []
    live, told = generator._live, generator._live.failed
    live.failed = lambda call, status, **more: (failures.append(status), told(call, status, **more))  # type: ignore[method-assign]
    try:
        with pytest.raises(openai.BadRequestError, match=words) as refusal:
            complete(ids, prompt, version)
    finally:
        live.failed = told  # type: ignore[method-assign]
    assert refusal.value.param == "prompt"
    assert {*failures} <= {400}
    assert generator.statuses - statuses == ({400: 1} if failures else {})
    assert len(complete(ids, [5] * (CONTEXT - 4), version).choices) == 1
    assert [row[2] for row in ids.log.rows()[before:]] == [version]  # of the refused one there is no row


def test_a_vocabulary_is_that_of_the_version(ids: ServedDoor):
    assert complete(ids, [5, 2_000], version=3).usage.prompt_tokens == 2
    with pytest.raises(openai.BadRequestError, match=r"got 99999;"):
        complete(ids, [99_999], version=3)


def test_ids_to_embed_that_there_are_not_are_refused(ids: ServedDoor):
    client = ids.client()
    assert len(client.embeddings.create(model=MODEL, input=[[5, 1_999], [7]]).data) == 2
    for given in ([5, 2_000], [[5], [6, 1 << 30]]):
        with pytest.raises(openai.BadRequestError, match=r"input\[1\]: expected a token id"):
            client.embeddings.create(model=MODEL, input=given)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("Write about the ox", "animals"),
        ("Write to ada@example.com", "personal_data"),
        ("Write about the oxen", None),
        ("Write to ada at example", None),
        ("tell me", None),
    ],
)
def test_rules_read_the_text_of_ids(ids: ServedDoor, text: str, rule: str | None, *, stream: bool):
    tokens = encode(ids, text)
    before = len(ids.log.payloads)
    if rule is None:
        answer = complete(ids, tokens, version=2, stream=stream)
        assert list(answer) if stream else answer.choices
    else:
        with pytest.raises(
            openai.BadRequestError, match=f"prompt: refused by the guardrail '{rule}'"
        ) as refusal:
            complete(ids, tokens, version=2, stream=stream)
        assert (refusal.value.code, refusal.value.param) == ("content_filter", "prompt")
    (row,) = ids.log.rows()[before:]
    prompt, parameters = logged(row)
    if rule == "personal_data":
        assert prompt == "Write to [email]"
        assert "prompt_token_ids" not in parameters
    else:
        assert (prompt, parameters["prompt_token_ids"]) == (text, tokens)
    found = ids.log.outputs(row).get("guardrails")
    assert [each["action"] for each in json.loads(found or "[]")] == (
        ["refuse"] if rule else ["flag"] if "tell" in text else []
    )


def test_a_shadow_with_another_vocabulary_reads_the_text_of_ids(ids: ServedDoor):
    text = "Write about the oxen"
    tokens, others = encode(ids, text), encode(ids, text, version=3)
    assert tokens != others
    ids.registry.set_traffic(MODEL, {}, shadows=[2, 3])
    asked: set[str] = set()

    def shadowed() -> dict[int, Any]:
        answer = ids.client().completions.create(model=MODEL, prompt=tokens, max_tokens=1)
        asked.add(answer.id)
        return {row[2]: row for row in ids.log.rows() if row[4] and row[0] in asked}

    waiting.until(lambda: {2, 3} <= {*shadowed()}, within_s=200)
    rows = shadowed()
    assert logged(rows[2])[1]["prompt_token_ids"] == tokens
    assert logged(rows[3])[0] == text
    assert "prompt_token_ids" not in logged(rows[3])[1]
    assert ids.log.outputs(rows[3])["tokens"][0] == len(others)
