"""Preference objective (DPO) of a small language model, beside transformers and the paper's formula."""

import json

import pyarrow as pa
import pytest
import torch

from tests.functions.training.test_llm import NUMBERS, PARAMS, SMALL, SPEC, base
from toque.functions.training import TrainingDataError
from toque.functions.training.llm import FineTune, Preference, fine_tune, job
from toque.functions.training.llm.job import Pairs, log_likelihoods, preference_task
from toque.functions.training.llm.network import Pretrained, new_network
from toque.functions.training.llm.texts import IGNORED
from toque.functions.training.loop.process_group import SingleProcess
from toque.functions.training.loop.training_loop import Trainer
from toque.registry import Table

transformers = pytest.importorskip("transformers")

__all__ = ["base"]  # a fixture
PREFERRING = SPEC.model_copy(update={"preference": Preference(beta=0.5)})


@pytest.fixture(scope="module")
def rows():
    questions = [f"what is the sum of {NUMBERS[n % 4]} {NUMBERS[n % 5]}" for n in range(40)]
    return pa.table(
        {
            "messages": [json.dumps([{"role": "user", "content": each}]) for each in questions],
            "chosen": [NUMBERS[min(8, n % 4 + n % 5 + 1)] for n in range(40)],
            "rejected": ["the sum" for _ in range(40)],
        }
    )


def likelihood(net, ids, labels):
    """Log likelihood of the learnt tokens of one text, token by token."""
    logits = net(input_ids=ids[None]).logits[0].log_softmax(-1)
    return sum(logits[at - 1, ids[at]] for at in range(1, len(ids)) if labels[at] != IGNORED)


def test_the_loss_is_the_papers_and_begins_where_nothing_is_preferred(base, rows):
    task = preference_task(PREFERRING, base, rows)
    trainer = Trainer(new_network(base, SPEC.lora), task, PARAMS, SingleProcess(), Pretrained(base, 0))
    task.refer_to(trainer.net, SingleProcess(), rows=7, half=False)
    own = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        ids, labels, reference = task.train_batch(torch.tensor([3]))
        wanted = [float(likelihood(own, ids[0, n], labels[0, n])) for n in (0, 1)]
        assert reference[0].tolist() == pytest.approx(wanted, abs=1e-4)
        assert float(task.loss(trainer.net, task.valid_batch(torch.arange(3)))) == pytest.approx(
            0.6931, abs=1e-4
        )
    trainer.run_epoch()
    trainer.net.eval()
    with torch.no_grad():
        now = [float(likelihood(trainer.net, ids[0, n], labels[0, n])) for n in (0, 1)]
        margin = 0.5 * ((now[0] - wanted[0]) - (now[1] - wanted[1]))
        found = float(task.loss(trainer.net, (ids, labels, reference)))
    assert found == pytest.approx(float(torch.tensor(margin).neg().exp().log1p()), abs=1e-4)
    assert margin > 0.0


def test_a_model_that_learnt_preferences_is_a_version(context, base, rows):
    registry = context.registry()
    registry.create_model("tiny")
    registry.create_version("tiny", base, signature=SMALL)
    snapshot = Table(context.store, "training/pairs").overwrite(rows)
    tuned = fine_tune(
        "liked", "tiny@1", snapshot, length=32, lora=SPEC.lora, preference=Preference(), params=PARAMS
    )
    assert tuned.metrics["valid_loss"] < 0.65
    assert registry.get_version("liked", tuned.version).tags["base"] == "tiny@1"


def test_the_base_is_asked_in_pieces_of_a_step(context, base, rows, monkeypatch):
    pairs: dict[bool, list[int]] = {True: [], False: []}

    def counted(module, ids, labels):
        pairs[torch.is_grad_enabled()].append(len(ids))
        return log_likelihoods(module, ids, labels)

    monkeypatch.setattr(job, "log_likelihoods", counted)
    registry = context.registry()
    registry.create_model("tiny")
    registry.create_version("tiny", base, signature=SMALL)
    snapshot = Table(context.store, "training/pairs").overwrite(rows)
    params = PARAMS.model_copy(update={"batch_size": 8, "accumulate": 4, "epochs": 1})
    fine_tune("liked", "tiny@1", snapshot, length=32, preference=Preference(), params=params, register=False)
    assert max(pairs[True]) == max(pairs[False]) == 2


def test_pairs_that_do_not_fit_and_texts_without_answers_are_refused():
    with pytest.raises(TrainingDataError, match="no pair of answers fits length=8"):
        Pairs.of([], 8)
    with pytest.raises(ValueError, match="it compares answers to messages"):
        FineTune(base="tiny@1", column="text", preference=Preference())
