"""The gate of language models, with a real engine and as the model's policy demands it."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.language_model import language_model_weights
from toque.functions import Context
from toque.functions.evaluation import EvaluationError, GateResult, SliceRule, check_policy_gates
from toque.functions.evaluation.language import AnswerGate, Scorer
from toque.functions.evaluation.language.jobs import evaluate_answers
from toque.functions.generative import EngineSettings, Prompt, register_generative
from toque.registry import GateData, GateDemand, ModelPolicy, Refused, Table, TableSnapshot

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Japan": "Tokyo", "Egypt": "Cairo",
    "Russia": "Moscow", "Greece": "Athens", "England": "London",
}  # fmt: skip
GATE = AnswerGate(scorers=(Scorer(kind="contains"),), min_rows=len(CAPITALS))
POLICY = ModelPolicy(
    guarded=frozenset({"champion"}), approvals=0, gates=(GATE.demand(GateData(table="evaluation/capitals")),)
)


@pytest.fixture(scope="module")
def weights() -> Path:
    return language_model_weights()


@pytest.fixture
def capitals(context: Context) -> TableSnapshot:
    rows = {
        "messages": [
            json.dumps([{"role": "user", "content": f"What is the capital of {land}?"}]) for land in CAPITALS
        ],
        "expected": list(CAPITALS.values()),
        "variables": [json.dumps({"style": "brief"})] * len(CAPITALS),
    }
    return Table(context.store, "evaluation/capitals").append(pa.table(rows))


def prompt(text: str, **parameters: Any) -> Prompt:
    return Prompt.model_validate(
        {
            "messages": [{"role": "system", "content": text + " Style: {{ style }}."}],
            "variables": {"style": {}},
            "parameters": {"temperature": 0, "max_tokens": 12, **parameters},
        }
    )


@pytest.mark.slow
def test_a_worse_prompt_is_blocked_and_an_equal_one_goes_live(
    context: Context, weights: Path, capitals: TableSnapshot
):
    registry = context.registry()
    settings = EngineSettings(context_length=256, slots=4)
    good = prompt("You answer in one sentence.")
    register_generative(registry, "chat", weights=weights, settings=settings, prompt=good)
    registry.promote("chat", 1)
    registry.set_policy("chat", POLICY)
    for version, other in ((2, prompt("You answer in one sentence.", max_tokens=1)), (3, good)):
        register_generative(registry, "chat", prompt=other, keep=1)
        found = evaluate_answers("chat", version, capitals)
        recorded = registry.get_version("chat", version).gates["answers"]
        assert recorded.passed == found.passed == (version == 3)
        assert (
            GateResult.model_validate({k: v for k, v in recorded.details.items() if k != "dataset"}) == found
        )
        assert found.champion == 1
    worse = registry.get_version("chat", 2).gates["answers"].details
    assert worse["metrics"] == {"contains": 0, "champion_contains": pytest.approx(1, abs=0.3)}
    assert worse["intervals"]["contains - champion"]["high"] < 0
    assert [each["name"] for each in worse["checks"] if not each["passed"]] == [
        "contains - champion, upper end"
    ]
    with pytest.raises(Refused, match="answers"):
        registry.promote("chat", 2)
    registry.promote("chat", 3)


@pytest.mark.slow
def test_a_prompt_that_is_better_on_the_whole_and_worse_on_a_slice_is_blocked(
    context: Context, weights: Path
):
    """Version 1 stops before it names a capital outside Europe, and version 2 before one of Europe, of which there are fewer rows."""
    registry = context.registry()
    europe, elsewhere = ["France", "Italy"] * 5, ["Japan", "Egypt"] * 6
    lands = [*europe, *elsewhere]
    rows = {
        "prompt": [f"What is the capital of {land}?" for land in lands],
        "variables": [json.dumps({"style": "brief"})] * len(lands),
        "expected": [CAPITALS[land] for land in lands],
        "continent": ["Europe"] * len(europe) + ["elsewhere"] * len(elsewhere),
    }
    dataset = Table(context.store, "evaluation/continents").append(pa.table(rows))
    settings = EngineSettings(context_length=256, slots=4)
    first, second = (
        prompt("You answer in one sentence.", stop=sorted({CAPITALS[land] for land in stops}))
        for stops in (elsewhere, europe)
    )
    register_generative(registry, "chat", weights=weights, settings=settings, prompt=first)
    registry.promote("chat", 1)
    register_generative(registry, "chat", prompt=second, keep=1)
    rule = SliceRule(columns=("continent",), min_rows=10, max_excess=0.1)
    found = evaluate_answers("chat", 2, dataset, AnswerGate(scorers=GATE.scorers, min_rows=20, slices=rule))
    assert found.metrics["contains"] > found.metrics["champion_contains"]
    (failed,) = [each for each in found.checks if not each.passed]
    assert failed.name == "contains, slices against champion: least p of 2"
    assert failed.note.startswith("continent = Europe: loss +")
    assert " on 10 rows, p = " in failed.note
    recorded = registry.get_version("chat", 2).gates["answers"]
    assert recorded.passed is found.passed is False
    assert failed.model_dump(mode="json") in recorded.details["checks"]


@pytest.fixture
def fake(context: Context, tmp_path: Path) -> None:
    """A version whose weights no engine could read: what is refused is refused before one starts."""
    file = tmp_path / "small.gguf"
    file.write_bytes(b"GGUF and no more")
    register_generative(context.registry(), "chat", weights=file, prompt=prompt("Hi."))


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ({"prompt": ["Hi"], "expected": ["Hello"]}, "row 0: variables.style: missing"),
        ({"prompt": ["Hi", None], "expected": ["Hello", "x"]}, "row 1: prompt is null"),
        ({"prompt": ["Hi"], "answer": ["Hello"]}, r"needs \['expected'\]"),
        ({"text": ["Hi"], "expected": ["Hello"]}, r"needs \['prompt'\]"),
        ({"messages": ["Hi"], "expected": ["Hello"]}, "row 0: messages='Hi' is not JSON"),
        ({"messages": ['{"a": 1}'], "expected": ["Hello"]}, "expected a JSON list"),
        ({"prompt": [], "expected": []}, "no rows"),
    ],
)
def test_rows_that_cannot_be_asked_do_not_pass(context: Context, rows: dict[str, Any], reason: str):
    columns = {name: pa.array(values, pa.string()) for name, values in rows.items()}
    dataset = Table(context.store, "rows").append(pa.table(columns))
    found = evaluate_answers("chat", 1, dataset)
    assert not found.passed
    assert context.registry().get_version("chat", 1).gates["answers"].passed is False
    with pytest.raises(AssertionError if not found.reason else EvaluationError, match=reason):
        raise EvaluationError(found.reason)


@pytest.mark.usefixtures("fake")
def test_slices_of_a_column_that_lacks_are_named_before_an_engine_starts(
    context: Context, capitals: TableSnapshot
):
    gate = AnswerGate(slices=SliceRule(columns=("language",)))
    found = evaluate_answers("chat", 1, capitals, gate)
    assert not found.passed
    assert "slices.columns=['language']: the evaluation set has columns ['messages', " in found.reason


@pytest.mark.usefixtures("fake")
def test_the_policy_sets_limits_and_rows(context: Context, capitals: TableSnapshot):
    context.registry().set_policy("chat", POLICY)
    with pytest.raises(EvaluationError, match=r"'min_rows', 'scorers'|'scorers', 'min_rows'"):
        evaluate_answers("chat", 1, capitals, AnswerGate(scorers=(Scorer(kind="json"),)))
    other = Table(context.store, "evaluation/easy").append(pa.table({"prompt": ["Hi"], "expected": ["Hi"]}))
    with pytest.raises(EvaluationError, match="the policy demands 'evaluation/capitals'"):
        evaluate_answers("chat", 1, other)
    with pytest.raises(Refused, match="evaluate_answers"):
        context.registry().record_gate("chat", 1, "answers", passed=True)


def test_the_limits_of_a_policy_are_those_of_a_gate():
    check_policy_gates(POLICY)
    check_policy_gates(ModelPolicy(gates=(AnswerGate(name="tone").demand(),)))
    broken = ModelPolicy(gates=(GateDemand(name="answers", limits={"scorers": [{"kind": "taste"}]}),))
    with pytest.raises(EvaluationError, match="gate 'answers' of the model's policy"):
        check_policy_gates(broken)
