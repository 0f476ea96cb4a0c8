"""The loss of texts is a token's: rows with few learnt tokens count for few, in any pieces and over any workers."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.functions.training.forked import answers
from tests.functions.training.token_worker import PARAMS, PIECES, WORDS, WORKERS, Bigram, bigram, losses, task
from toque.functions.training.llm.texts import IGNORED, Rows, TextTask, Tokens, answers_beyond, packed, within
from toque.functions.training.loop.training_loop import Trainer
from toque.functions.training.loop.updates import Updates


def of_a_token(net: Bigram, rows: Rows) -> Tensor:
    """Mean over all learnt tokens of all rows together, by torch alone."""
    logits, labels = net.table(rows.ids[:, :-1]), rows.labels[:, 1:]
    return cross_entropy(logits[labels != IGNORED], labels[labels != IGNORED])


@pytest.mark.parametrize("pieces", [1, 2, 5, 24])
def test_a_step_follows_the_gradient_of_the_mean_over_its_tokens(pieces: int, monkeypatch) -> None:
    texts, net, alone = task(), bigram(), bigram()
    whole = PARAMS.model_copy(update={"batch_size": 24, "accumulate": pieces})
    gradients: list[Tensor] = []
    apply = Updates.apply

    def recorded(self: Updates) -> bool:
        gradients.append(net.table.weight.grad.clone())
        return apply(self)

    monkeypatch.setattr(Updates, "apply", recorded)
    epoch = Trainer(net, texts, whole).run_epoch()
    loss = of_a_token(alone, texts.train)
    loss.backward()
    torch.testing.assert_close(gradients[0], alone.table.weight.grad, rtol=1e-5, atol=1e-7)
    assert epoch.train_loss == pytest.approx(float(loss.detach()), rel=1e-5)


def test_the_losses_of_an_epoch_are_logarithms_of_perplexities() -> None:
    texts, net = task(), bigram()
    trainer = Trainer(net, texts, PARAMS.model_copy(update={"lr": 1e-12}))  # as good as at rest
    epoch = trainer.run_epoch()
    assert epoch.train_loss == pytest.approx(float(of_a_token(net, texts.train).detach()), rel=1e-5)
    assert epoch.valid_loss == pytest.approx(float(of_a_token(net, texts.valid).detach()), rel=1e-5)


@pytest.mark.parametrize("stop", [1, 3])
def test_an_epoch_that_resumes_reports_the_loss_of_all_its_tokens(stop: int) -> None:
    whole, first, second = (Trainer(bigram(), task(), PARAMS) for _ in range(3))
    states = []

    def kept() -> None:
        if first.step == stop:
            tensors, facts = first.state()
            states.append(({name: value.clone() for name, value in tensors.items()}, facts))

    first.run_epoch(kept)
    second.resume(*states[0])
    assert second.run_epoch().train_loss == pytest.approx(whole.run_epoch().train_loss, rel=1e-6)
    assert torch.equal(second.net.table.weight, whole.net.table.weight)


@pytest.mark.slow
def test_two_workers_with_unequal_tokens_learn_what_one_does(tmp_path: Path) -> None:
    worker = [sys.executable, "-m", "tests.functions.training.token_worker", str(tmp_path)]
    done = subprocess.run(worker, text=True, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = answers(tmp_path)
    assert len(found) == WORKERS
    alone = losses(1)
    assert alone[-1][0] < alone[0][0] < torch.tensor(float(WORDS)).log() + 1
    for each in found:
        for pieces in PIECES:
            assert each[str(pieces)] == [pytest.approx(epoch, abs=1e-5) for epoch in alone]


@pytest.mark.parametrize("length", [2, 8, 99, 100, 101, 1_000])
def test_every_token_of_a_long_document_is_predicted_once(length: int) -> None:
    documents = [Tokens(ids := [*range(1, count + 1)], ids) for count in (1, 2, 100, 256, 3)]
    rows = packed(documents, length)
    assert sorted(rows.labels[rows.labels != IGNORED].tolist()) == sorted(
        token for text in documents for token in text.ids[1:]
    )
    before = rows.ids.roll(1, 1)[rows.labels != IGNORED] + 1
    assert torch.equal(before, rows.labels[rows.labels != IGNORED])  # each by the token before it


@pytest.mark.parametrize("counts", [[30] * 40, [63, 2] * 20, [5]])
def test_the_tokens_of_rows_are_those_of_their_texts(counts: list[int]) -> None:
    rows = packed([Tokens([7] * count, [7] * count) for count in counts], 64)
    assert TextTask(rows, rows).units["tokens"] * len(rows) == pytest.approx(sum(counts))


def test_answers_that_do_not_end_within_the_length_are_counted() -> None:
    labels = [IGNORED, IGNORED, 2, 3, IGNORED, IGNORED, 6, 7, IGNORED, 9]
    text = Tokens([*range(10)], labels)
    assert [answers_beyond(text, length) for length in range(3, 11)] == [3, 2, 2, 2, 2, 1, 1, 0]
    assert within(text, 7).labels == labels[:7]
