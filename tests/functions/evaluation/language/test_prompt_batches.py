"""Batch inference of a language model, with a real engine: every row once, whoever dies, and what could not be asked."""

import json
import multiprocessing
import multiprocessing.util
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests import waiting
from tests.functions.evaluation.language.prompt_victim import answer
from tests.language_model import language_model_weights, write_small_model
from toque.functions import Context
from toque.functions.evaluation.batch_inference import predict_batch
from toque.functions.generative import EngineSettings, Prompt, register_generative
from toque.functions.runtime.errors import InvalidArguments
from toque.functions.training import TrainingDataError
from toque.registry import Table, TableSnapshot

SETTINGS = EngineSettings(context_length=128, slots=4)


@pytest.fixture(scope="module")
def weights() -> Path:
    return language_model_weights()


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    multiprocessing.util.get_temp_dir()  # made now, since it must not lie in a folder that goes with the test
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))


def register_chat(context: Context, weights: Path) -> None:
    prompt = Prompt.model_validate(
        {
            "messages": [{"role": "system", "content": "Answer in {{ style }} words."}],
            "variables": {"style": {"default": "few"}},
            "parameters": {"temperature": 0, "max_tokens": 6},
        }
    )
    register_generative(context.registry(), "chat", weights=weights, settings=SETTINGS, prompt=prompt)


@pytest.fixture
def chat(context: Context, weights: Path, scratch: None) -> Context:
    register_chat(context, weights)
    return context


def questions(store: Any, count: int) -> TableSnapshot:
    asked = [f"What is {number} plus one?" for number in range(count)]
    return Table(store, "questions").append(pa.table({"prompt": asked, "id": pa.array(range(count))}))


def scratch_folders() -> list[Path]:
    return [each for each in Path(tempfile.gettempdir()).glob("toque-*/engine-files/*") if each.is_dir()]


@pytest.mark.slow
def test_rows_are_answered_once_and_those_that_cannot_be_asked_say_why(chat: Context):
    rows = {
        "messages": [json.dumps([{"role": "user", "content": text}]) for text in ("Hi", "Hi", "word " * 200)]
        + ["no JSON", json.dumps([{"role": "user", "content": "What is 2+2?"}])],
        "variables": [None, json.dumps({"tone": "dry"}), None, None, json.dumps({"style": "two"})],
        "id": ["a", "b", "c", "d", "e"],
    }
    dataset = Table(chat.store, "asked").append(pa.table(rows))
    done = predict_batch("chat", dataset, version=1, keep=["id"], shard_rows=2)
    assert (done.rows, done.rows_scored, done.where) == (5, 5, "here")
    found = Table(chat.store, "batch/chat").read().sort_by("row").to_pylist()
    assert [each["id"] for each in found] == rows["id"]
    assert {each["model_version"] for each in found} == {1}
    asked = [each["refused"] is None for each in found]
    assert asked == [True, False, False, False, True]
    for each, was_asked in zip(found, asked, strict=True):
        assert (each["answer"] is not None) == was_asked
        if was_asked:
            assert json.loads(each["message"])["content"] == each["answer"]
            assert 0 < each["answer_tokens"] <= 6
            assert each["prompt_tokens"] > each["answer_tokens"]
    assert "has none of that name" in found[1]["refused"]
    assert "context" in found[2]["refused"]
    assert "row 3: messages='no JSON' is not JSON" in found[3]["refused"]
    assert predict_batch("chat", dataset, version=1, keep=["id"], shard_rows=2).rows_scored == 0
    assert not scratch_folders()


@pytest.mark.long
@pytest.mark.slow
def test_killed_five_times_every_row_is_there_once(
    context: Context, weights: Path, scratch: None, tmp_path: Path
):
    register_chat(context, write_small_model(tmp_path / "small.gguf", weights))
    count, shard_rows, kills = 200, 4, 5
    dataset = questions(context.store, count)
    out, written = Table(context.store, "answers"), 0
    processes = multiprocessing.get_context(
        "spawn"
    )  # the one fork server is for tests with an environment of their own

    def begin() -> Any:
        victim = processes.Process(target=answer, args=(context.store_url, dataset, shard_rows, "answers"))
        victim.start()
        return victim

    def rows() -> int:
        return out.read(columns=["row"]).num_rows if out.exists() else 0

    for _ in range(kills):
        victim = begin()
        waiting.until(lambda: rows() > written or not victim.is_alive(), within_s=600)  # noqa: B023
        assert victim.is_alive()
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        written = rows()
    assert 0 < written < count
    last = begin()
    last.join(600)
    assert last.exitcode == 0
    assert out.read().sort_by("row")["row"].to_pylist() == list(range(count))
    assert not scratch_folders()  # the last run has removed those of the killed ones, and its own


def test_a_table_without_requests_or_with_huge_shards_is_refused(context: Context, tmp_path: Path):
    file = tmp_path / "small.gguf"
    file.write_bytes(b"GGUF and no more")
    register_generative(context.registry(), "chat", weights=file)
    bare = Table(context.store, "bare").append(pa.table({"text": ["Hi"]}))
    with pytest.raises(TrainingDataError, match=r"lacks columns \['prompt'\]"):
        predict_batch("chat", bare, version=1)
    dataset = questions(context.store, 1)
    with pytest.raises(TrainingDataError, match="must be from 1 to 5000"):
        predict_batch("chat", dataset, version=1, shard_rows=5_001)
    with pytest.raises(InvalidArguments, match=r"shard_rows: .* greater than or equal to 1, got 0"):
        predict_batch("chat", dataset, version=1, shard_rows=0)
    taken = Table(context.store, "taken").append(pa.table({"prompt": ["Hi"], "answer": ["Hello"]}))
    with pytest.raises(TrainingDataError, match=r"keep=\['answer'\] would meet"):
        predict_batch("chat", taken, version=1, keep=["answer"])
