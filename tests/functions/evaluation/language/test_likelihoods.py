"""Likelihoods of texts and choices, beside transformers token by token, and the gate that is judged by them."""

import json
import math

import pyarrow as pa
import pytest
import torch

from tests.functions.training.test_llm import NUMBERS, SMALL, base, conversation
from toque.functions.evaluation import EvaluationError, SliceRule
from toque.functions.evaluation.language import AnswerGate, Scorer
from toque.functions.evaluation.language.evaluation_set import read_rows
from toque.functions.evaluation.language.jobs import evaluate_answers, evaluate_likelihoods
from toque.functions.evaluation.language.likelihood import Likelihoods, read_model
from toque.functions.training import RecipeParams, fine_tune
from toque.registry import GateData, ModelPolicy, Table

transformers = pytest.importorskip("transformers")

__all__ = ["base"]  # a fixture
TEXTS = ["what is the sum of one two", "three", "is the sum of four the sum of nine"]


def token_by_token(net, ids, since):
    """Log likelihood of the tokens from a place on, one forward pass for each."""
    total = 0.0
    for at in range(since, len(ids)):
        logits = net(input_ids=torch.tensor([ids[:at]])).logits[0, -1].log_softmax(-1)
        total += float(logits[ids[at]])
    return total


@pytest.fixture(scope="module")
def model(base):
    return read_model(base)


def test_a_text_is_as_likely_as_its_tokens_one_after_the_other(model):
    with torch.inference_mode():
        for text in TEXTS:
            found = model.of_text(text)
            ids = [model.tokenizer.eos_token_id, *model.tokenizer(text)["input_ids"]]
            assert found.nats == pytest.approx(token_by_token(model.net, ids, 1), abs=1e-4)
            assert (found.tokens, found.size_bytes) == (len(ids) - 1, len(text))


def test_a_text_that_is_longer_than_a_window_is_read_in_several(model):
    short = Likelihoods(model.net, model.tokenizer, longest=4)
    text = TEXTS[2]
    ids = [model.tokenizer.eos_token_id, *model.tokenizer(text)["input_ids"]]
    with torch.inference_mode():
        wanted = sum(
            token_by_token(model.net, ids[first - 1 : first + 4], 1) for first in range(1, len(ids), 4)
        )
    assert short.of_text(text).nats == pytest.approx(wanted, abs=1e-4)
    assert short.of_text(text).tokens == model.of_text(text).tokens == 9


def choices(count=60):
    chats = [json.loads(conversation(number)) for number in range(count)]
    return pa.table(
        {
            "messages": [json.dumps(chat[:1]) for chat in chats],
            "choices": [NUMBERS for _ in chats],
            "expected": [chat[1]["content"] for chat in chats],
        }
    )


def test_choices_are_scored_after_their_prompt_alone_or_in_a_conversation(model):
    prompts = pa.table(
        {"prompt": ["the sum of "], "choices": [["two", "nine eight"]], "expected": ["nine eight"]}
    )
    for table, before in (
        (prompts, "the sum of"),
        (choices(1), "<user> what is the sum of one one </s> <assistant>"),
    ):
        (row,) = read_rows(table, label="expected", needs_expected=True, seed=0)
        start = model.tokenizer(before)["input_ids"]
        with torch.inference_mode():
            for choice, found in zip(row.choices, model.of_choices(row), strict=True):
                ids = [*start, *model.tokenizer(choice)["input_ids"]]
                assert found.nats == pytest.approx(token_by_token(model.net, ids, len(start)), abs=1e-4)
                assert found.tokens == len(ids) - len(start)


@pytest.mark.parametrize(
    ("given", "expected"), [(["one"], "one"), (["one", "two"], "three"), ("one two", "one")]
)
def test_choices_without_the_right_one_are_refused(given, expected):
    table = pa.table({"prompt": ["the sum"], "choices": [given], "expected": [expected]})
    with pytest.raises(EvaluationError, match=r"row 0: choices=.*expected a list of 2 texts or more"):
        read_rows(table, label="expected", needs_expected=True, seed=0)


def test_an_answer_shows_no_likelihood():
    with pytest.raises(EvaluationError, match="judge the version by evaluate_likelihoods"):
        Scorer(kind="likelihood").score("one", "one")


@pytest.fixture
def sums(context, base):
    """A model whose first version knows nothing, whose second has learnt the sums, and the rows to judge it by."""
    registry = context.registry()
    demanded = AnswerGate(
        name="choices", scorers=(Scorer(), Scorer(kind="likelihood")), min_mean=0.2, min_rows=20
    )
    policy = ModelPolicy(
        guarded=frozenset({"champion"}),
        approvals=0,
        gates=(demanded.demand(GateData(table="evaluation/sums")),),
    )
    registry.create_model("tiny")
    registry.create_version("tiny", base, signature=SMALL)
    registry.create_model("sums", policy=policy)
    registry.create_version("sums", base, signature=SMALL)
    rows = pa.table({"messages": [conversation(number) for number in range(200)]})
    learnt = Table(context.store, "training/sums").overwrite(rows)
    params = RecipeParams(lr=1e-2, epochs=16, batch_size=8, weight_decay=0.0)
    assert fine_tune("sums", "tiny@1", learnt, length=32, lora=None, params=params).version == 2
    return registry, Table(context.store, "evaluation/sums").overwrite(choices())


def test_a_version_that_learnt_passes_the_gate_and_one_that_did_not_fails(context, sums, tmp_path):
    registry, rows = sums
    good = evaluate_likelihoods("sums", 2, rows, AnswerGate(name="choices"))
    assert good.passed, good
    assert good.metrics["exact"] == good.metrics["accuracy_by_byte"] > 0.5
    assert registry.promote("sums", 2).version == 2
    poor = evaluate_likelihoods("sums", 1, rows, AnswerGate(name="choices"))
    assert (poor.passed, poor.champion) == (False, 2)
    assert poor.metrics["champion_likelihood"] == pytest.approx(good.metrics["likelihood"])
    assert poor.intervals["likelihood - champion"].high < 0.0

    texts = Table(context.store, "evaluation/texts").overwrite(pa.table({"text": TEXTS}))
    perplexity = evaluate_likelihoods("sums", 1, texts)
    model = read_model(registry.download("sums", 1, to=tmp_path / "first"))
    total = [model.of_text(text) for text in TEXTS]
    nats, tokens = sum(each.nats for each in total), sum(each.tokens for each in total)
    assert perplexity.metrics["perplexity"] == pytest.approx(math.exp(-nats / tokens), rel=1e-4)
    assert perplexity.metrics["bits_per_byte"] == pytest.approx(
        -nats / math.log(2) / sum(map(len, TEXTS)), rel=1e-4
    )

    sliced = AnswerGate(
        name="sliced",
        scorers=(Scorer(kind="likelihood"),),
        min_rows=30,
        slices=SliceRule(columns=("kind",), min_rows=10),
    )
    kinds = pa.table({"text": TEXTS[:1] * 10 + TEXTS[1:2] * 20, "kind": ["question"] * 10 + ["word"] * 20})
    found = evaluate_likelihoods("sums", 1, Table(context.store, "evaluation/kinds").overwrite(kinds), sliced)
    learnt = read_model(registry.download("sums", 2, to=tmp_path / "second"))
    for text, kind in zip(TEXTS, ("question", "word"), strict=False):  # rows are asked in another order
        lower = learnt.of_text(text).a_token - model.of_text(text).a_token
        assert f"kind = {kind}: loss {lower:+.4f}" in found.checks[-1].note


def test_what_has_no_likelihood_fails_the_gate_with_the_reason(context, sums, tmp_path):
    registry, rows = sums
    registry.create_model("other")
    (tmp_path / "words.txt").write_text("one two")
    registry.create_version("other", tmp_path, signature=SMALL)
    found = evaluate_likelihoods("other", 1, rows)
    assert not found.passed
    assert "Hugging Face folders" in found.reason
    said = evaluate_likelihoods("sums", 2, rows, AnswerGate(name="mine", scorers=(Scorer(kind="contains"),)))
    assert "a choice is right or not" in said.reason
    assert "no version of a language model" in evaluate_answers("sums", 2, rows).reason


@pytest.mark.parametrize(
    "limits",
    [
        {"min_rows": 2},
        {"scorers": (Scorer(),), "min_rows": 2},
        {"scorers": (Scorer(kind="likelihood"),), "min_mean": 0.9, "min_rows": 2},
    ],
)
def test_a_call_without_a_gate_is_judged_by_the_limits_of_the_policy(context, base, limits):
    registry = context.registry()
    demanded = AnswerGate(name="likelihood", **limits)
    registry.create_model("sums", policy=ModelPolicy(approvals=0, gates=(demanded.demand(),)))
    registry.create_version("sums", base, signature=SMALL)
    rows = Table(context.store, "evaluation/sums").overwrite(choices(2))
    found = evaluate_likelihoods("sums", 1, rows)
    assert [check.limit for check in found.checks if check.name == "rows"] == [2]
    assert {each.label for each in demanded.scorers} <= set(found.metrics)
    assert registry.get_version("sums", 1).gates["likelihood"].demand == demanded.demand().digest
    own = AnswerGate(name="likelihood", min_rows=1, scorers=demanded.scorers)
    with pytest.raises(EvaluationError, match=r"min_rows.* differ; leave them out"):
        evaluate_likelihoods("sums", 1, rows, own)


def test_without_a_policy_a_call_without_a_gate_is_judged_by_likelihood_alone(context, base):
    registry = context.registry()
    registry.create_model("sums")
    registry.create_version("sums", base, signature=SMALL)
    evaluate_likelihoods("sums", 1, Table(context.store, "evaluation/sums").overwrite(choices(2)))
    alone = AnswerGate(name="likelihood", scorers=(Scorer(kind="likelihood"),))
    assert registry.get_version("sums", 1).gates["likelihood"].demand == alone.demand().digest
