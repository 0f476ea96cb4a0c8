"""The language model of examples/gpt."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from examples.gpt.__main__ import generate, summary
from examples.gpt.recipe import GptRecipe, Windows, notes
from tests.functions.training.tabular_setup import KillsItsWorker
from toque.functions import use_context
from toque.functions.training import RecipeParams, load, train_recipe
from toque.functions.training.checkpoints.saved import Checkpoints

TINY = {"context": 32, "width": 16, "heads": 2, "layers": 1}
PARAMS = RecipeParams(lr=1e-2, epochs=2, batch_size=32)


@pytest.fixture
def project(context):
    with use_context(replace(context, project="examples.gpt")) as with_project:
        yield with_project


def test_later_tokens_do_not_change_an_earlier_answer():
    recipe = GptRecipe(**TINY)
    net = recipe.network().eval()
    tokens = torch.randint(256, (2, 32), generator=torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[:, 20:] = 7
    with torch.no_grad():
        one, two = net(tokens), net(other)
    assert torch.allclose(one[:, :20], two[:, :20], atol=1e-6)
    assert not torch.allclose(one[:, 20:], two[:, 20:], atol=1e-6)


def test_windows_are_consecutive_and_stay_out_of_the_validation_text():
    windows = Windows.of(bytes(range(200)), 8)
    assert (windows.train_rows, windows.valid_rows) == (22, 2)
    (batch,) = windows.train_batch(torch.tensor([0, 21]))
    assert batch[0].tolist() == list(range(9))
    assert batch[1].tolist() == list(range(168, 177))
    (held,) = windows.valid_batch(torch.tensor([0]))
    assert held[0].tolist() == list(range(180, 189))
    with pytest.raises(ValueError, match="too few for context=8"):
        Windows.of(b"short", 8)


def single_bytes():
    """Nats a validation byte, predicted by how often each byte is in the text that is learnt from."""
    windows = Windows.of(notes(), 32)
    counts = torch.bincount(windows.train.long(), minlength=256) + 1
    return float(-(counts / counts.sum()).log()[windows.valid.long()].mean())


def test_the_model_learns_the_notes_and_its_registered_version_writes_text(project, tmp_path):
    trained = train_recipe("notes", "gpt", options=TINY, params=PARAMS)
    assert trained.metrics["valid_loss"] < 0.9 * single_bytes()
    assert "tokens/s" in summary(project.registry(), trained)
    project.registry().download("notes", trained.version, to=tmp_path / "gpt")
    text = generate(load(tmp_path / "gpt"), b"## ", 40)
    assert len(text) == 43
    assert text == generate(load(tmp_path / "gpt"), b"## ", 40)
    assert set(text) < set(notes()) | set(range(256))
    assert np.mean([chr(byte).isascii() for byte in text]) > 0.5


@pytest.mark.proof  # CI has halves of a model on Ray, halves that are interrupted, and a worker of Ray that is killed, each alone
@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_with_half_the_model_each_learn_what_one_does_though_killed(
    project, cluster, monkeypatch, tmp_path
):
    params = PARAMS.model_copy(update={"batch_size": 256, "epochs": 3})
    one = train_recipe("notes", "gpt", options=TINY, params=params)
    killed = KillsItsWorker(project.store, "checkpoints/deadly/", mark=tmp_path / "killed")
    monkeypatch.setattr(Checkpoints, "of", lambda *_: killed)
    two = train_recipe("notes", "gpt", options=TINY, params=params, num_workers=2, sharding="shard")
    assert killed.mark.exists()
    assert two.metrics["valid_loss"] == pytest.approx(one.metrics["valid_loss"], abs=1e-4)
    record = project.registry().get_run(two.run_id).record()
    assert record.metrics["tokens_per_s"] > 0
    assert record.metrics["cpu_hours"] == pytest.approx(two.cost.cpu_hours, rel=0.1)
    assert record.params["sharding"] == "shard"
    assert list(project.store.list("checkpoints/")) == []
