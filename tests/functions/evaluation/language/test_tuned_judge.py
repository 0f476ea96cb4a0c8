"""A judge that people's labels trust, end to end: a small model learns to judge, is calibrated, and decides a gate.

The model is too small to judge as it comes: it prefers a place. So adapters teach it one preference, for the city alone over a sentence
around it, on countries that nothing here asks about again.
"""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from examples.capitals.demo import CAPITALS, judged_countries, learnt_countries, question
from examples.capitals.steps import GOOD, WORSE
from examples.gpt.tune import from_gguf
from tests.language_model import language_model_weights
from toque.functions import Context
from toque.functions.evaluation.language import AnswerGate, Judge, Scorer
from toque.functions.evaluation.language.jobs import calibrate_judge, evaluate_answers
from toque.functions.generative import EngineSettings, Prompt, register_generative
from toque.functions.training import Lora, RecipeParams, fine_tune, serve_fine_tune
from toque.functions.training.llm.job import SIGNATURE
from toque.registry import Registry, Table, TableSnapshot

pytestmark = [pytest.mark.proof, pytest.mark.long, pytest.mark.slow, pytest.mark.timeout(3_600)]

ASKED = "Question: {question}\nA: {first}\nB: {second}\nWhich answer is the city alone, A or B?"
JUDGE = Judge(model="judge", version=2, min_agreement=0.8)
SETTINGS = EngineSettings(context_length=256, slots=4)
PARAMS = RecipeParams(lr=2e-3, epochs=1, batch_size=2)
TAUGHT, LABELLED, ASKED_ABOUT = 28, 40, 40
"""Countries by which the judge learns, by which it is held against people, and of the evaluation set."""
THREADS = 2
SENTENCES = (
    "The capital of {country} is {city}.",
    "{city} is the capital of {country}.",
    "The answer to your question is {city}.",
)


def judging() -> Prompt:
    names = ("question", "first", "second")
    return Prompt.model_validate(
        {
            "messages": [
                {"role": "user", "content": ASKED.format(**{name: f"{{{{ {name} }}}}" for name in names})}
            ],
            "variables": {name: {} for name in names},
            "parameters": {"temperature": 0, "max_tokens": 2},
        }
    )


def pairs(countries: list[str]) -> list[tuple[str, str, str]]:
    """Question, the better answer and the worse one: each country with each sentence."""
    return [
        (question(country), CAPITALS[country], each.format(country=country, city=CAPITALS[country]))
        for country in countries
        for each in SENTENCES
    ]


def lessons() -> pa.Table:
    """Conversations in which a judge chooses the better answer, in both orders."""
    turns = []
    for asked, better, worse in pairs(learnt_countries()[:TAUGHT]):
        for first, second, right in ((better, worse, "A"), (worse, better, "B")):
            text = ASKED.format(question=asked, first=first, second=second)
            turns.append([{"role": "user", "content": text}, {"role": "assistant", "content": right}])
    return pa.table({"messages": [json.dumps(each) for each in turns]})


def labels() -> pa.Table:
    """What people prefer of countries that the judge did not learn, half of the time the first."""
    found = pairs(judged_countries()[:LABELLED])[::2]
    firsts = [number % 2 == 0 for number in range(len(found))]
    rows = zip(found, firsts, strict=True)
    both = [(asked, *((one, other) if first else (other, one))) for (asked, one, other), first in rows]
    return pa.table(
        {
            "question": [each[0] for each in both],
            "first": [each[1] for each in both],
            "second": [each[2] for each in both],
            "preferred": ["first" if first else "second" for first in firsts],
        }
    )


def learn(context: Context, registry: Registry, weights: Path, place: Path) -> None:
    """Register the model as a judge, and its second version as one that has learnt to judge."""
    register_generative(registry, "judge", weights=weights, settings=SETTINGS, prompt=judging())
    registry.create_model("judge-base")
    registry.create_version("judge-base", from_gguf(weights, place / "base"), signature=SIGNATURE)
    rows = Table(context.store, "training/judge").overwrite(lessons())
    found = fine_tune(
        "judge-tuned", "judge-base@1", rows, length=256, lora=Lora(rank=8, alpha=16.0), params=PARAMS
    )
    assert found.version is not None
    assert serve_fine_tune("judge", 1, "judge-tuned", found.version).version == JUDGE.version


def asked_rows(context: Context) -> TableSnapshot:
    rows = {"prompt": [question(each) for each in judged_countries()[:ASKED_ABOUT]]}
    return Table(context.store, "evaluation/judged").append(pa.table(rows))


def test_a_judge_that_agrees_with_people_blocks_a_worse_prompt_and_passes_an_equal_one(
    context: Context, tmp_path: Path
):
    registry, weights = context.registry(), language_model_weights()
    learn(context, registry, weights, tmp_path)
    labelled = Table(context.store, "labels/pairs").append(labels())
    untaught = calibrate_judge(JUDGE.model_copy(update={"version": 1}), labelled, threads=THREADS)
    found = calibrate_judge(JUDGE, labelled, threads=THREADS)
    assert found.agreement is not None
    assert found.agreement.low >= JUDGE.min_agreement, (untaught, found)
    assert registry.get_version("judge", 2).gates["agreement"].passed
    assert not registry.get_version("judge", 1).gates["agreement"].passed

    register_generative(registry, "chat", weights=weights, settings=SETTINGS, prompt=GOOD)
    registry.promote("chat", 1)
    register_generative(registry, "chat", prompt=WORSE, keep=1)
    register_generative(registry, "chat", prompt=GOOD, keep=1)
    gate = AnswerGate(scorers=(Scorer(kind="length", max_length=400),), judge=JUDGE, min_rows=ASKED_ABOUT)
    rows = asked_rows(context)
    worse, equal = (evaluate_answers("chat", each, rows, gate, threads=THREADS) for each in (2, 3))
    assert equal.passed
    assert [each.name for each in worse.checks if not each.passed] == ["judge - champion, upper end"]
    assert worse.intervals["judge - champion"].high < 0
