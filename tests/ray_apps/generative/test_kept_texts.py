"""What the log keeps of an answer: the texts of a share that the model's policy says, counts and times of all, and the cost."""

import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.ray_apps.generative.conftest import ServedDoor
from tests.waiting import until
from toque.functions.generative import EngineSettings, register_generative
from toque.functions.prediction_log.records import is_sampled
from toque.functions.runtime.receipt import Prices, TokenPrice
from toque.ray_apps.generative.answering.recording import LoggedRow, response_tensors
from toque.ray_apps.generative.openai.answers import AnswerRecord
from toque.ray_apps.generative.options import GenerativeOptions
from toque.registry import ModelPolicy

MODEL, IDS = "sparing", 0
PRICES = {"support": {"prompt_million": 2.0, "cached_million": 0.5, "answer_million": 8.0}}


def ask(served: ServedDoor) -> None:
    asked: Any = [{"role": "user", "content": "Hi"}]
    served.client().chat.completions.create(model=MODEL, messages=asked, max_tokens=3)


def rows(served: ServedDoor) -> list[list[Any]]:
    return [row for row in served.log.rows() if row[1] == MODEL]


def test_the_log_keeps_the_texts_of_the_policys_share_and_the_counts_of_all(
    served: ServedDoor, small: Path
) -> None:
    registry = served.registry
    settings = EngineSettings(context_length=256, slots=2)
    register_generative(registry, MODEL, weights=small, settings=settings)
    registry.promote(MODEL, 1)
    ask(served)
    (first,) = rows(served)
    assert set(served.log.outputs(first)) == {"message", "finish_reason", "tokens", "timings_ms"}
    registry.set_policy(MODEL, ModelPolicy(keep_texts=0.3))

    def has_both() -> bool:
        ask(served)
        kept = ["message" in served.log.outputs(row) for row in rows(served)]
        return kept.count(False) >= 3 and kept[kept.index(False) :].count(True) >= 2

    until(has_both)
    later = rows(served)[1:]
    after = later[next(at for at, row in enumerate(later) if "message" not in served.log.outputs(row)) :]
    for row in after:
        found = served.log.outputs(row)
        assert ("message" in found) == is_sampled(row[IDS], 0.3)
        assert ("Hi" in str(row)) == is_sampled(row[IDS], 0.3)
        assert found["tokens"][0] > 0
        assert math.isfinite(found["timings_ms"][0])


def test_an_answers_cost_is_its_tokens_at_the_models_price() -> None:
    answer = AnswerRecord(
        {"content": "Yes"}, "stop", prompt_tokens=1_000, cached_tokens=600, completion_tokens=50
    )
    options = GenerativeOptions(store_url="memory:", token_prices=PRICES)  # type: ignore[arg-type]  # pydantic's to read
    # 400 tokens at 2, 600 at .5 and 50 at 8 a million
    for name, cost in (("support", 0.0015), ("other", None)):
        row = LoggedRow.of(
            "a", {}, response_tensors(answer), answer, price=options.token_price(name), keep_texts=0.0
        )
        assert "message" not in row.outputs
        assert ("cost" in row.outputs) == (cost is not None)
        if cost is not None:
            assert row.outputs["cost"].item() == pytest.approx(cost)


def test_prices_of_tokens_come_from_the_price_list(tmp_path: Path) -> None:
    prices = Prices(
        currency="EUR",
        cpu_hour=0.1,
        gpu_hour=3.0,
        tokens={"*": TokenPrice(prompt_million=1, answer_million=2)},
    )
    environment = {"TOQUE_STORE": f"file://{tmp_path}", "TOQUE_PRICES": prices.model_dump_json()}
    options = GenerativeOptions.from_environment(environment)
    assert options.token_price("any") == TokenPrice(prompt_million=1, answer_million=2)
    again = GenerativeOptions.model_validate(options.model_dump(mode="json"))
    assert again.token_prices == options.token_prices
    assert (
        GenerativeOptions.from_environment({"TOQUE_STORE": f"file://{tmp_path}"}).token_price("any") is None
    )
    assert prices.tokens["*"].money(prompt=1e6, cached=5e5, answer=1e6) == 3.0
    with pytest.raises(ValidationError, match="prompt_million"):
        TokenPrice(prompt_million=-1, answer_million=2)
