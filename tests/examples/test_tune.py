"""Language models of examples/gpt.tune: from random weights, then adapters on the version that came of it."""

import pytest

from examples.gpt import tune
from functions.training import Lora, RecipeParams
from tests.functions.training.conftest import context, one_thread
from tests.functions.training.test_llm import base

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

__all__ = ["base", "context", "one_thread"]  # fixtures
PARAMS = RecipeParams(lr=1e-2, epochs=2, batch_size=8)


def test_a_model_from_scratch_and_adapters_on_it_end_as_folders_that_transformers_opens(
    context, base, tmp_path, monkeypatch
):
    words = ["the", "sum", "of", "one", "two", "is", "three", "what"]
    texts = [" ".join(words[n % 4 :] + words[: n % 4]) for n in range(40)]
    monkeypatch.setattr(tune, "sections", lambda: texts)
    folder = tune.from_scratch(base, tmp_path / "scratch", width=64, layers=3)
    whole = tune.tune(context, folder, lora=None, length=16, params=PARAMS)
    registry = context.registry()
    registry.download(tune.MODEL, whole.version, to=tmp_path / "whole")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "whole")
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (64, 3, 18)
    adapted = tune.tune(context, tmp_path / "whole", lora=Lora(rank=2), length=16, params=PARAMS)
    assert adapted.metrics["valid_loss"] < whole.metrics["valid_loss"] < 2.5  # 2.9 at chance
    registry.download(tune.MODEL, adapted.version, to=tmp_path / "adapted")
    net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "adapted")
    assert not [name for name, _ in net.named_parameters() if "lora" in name]
    versions = [registry.get_version(tune.MODEL, each.version).tags["base"] for each in (whole, adapted)]
    assert versions == [f"{tune.BASE}@1", f"{tune.BASE}@2"]


def test_the_notes_are_cut_at_their_headings():
    found = tune.sections()
    assert len(found) > 100
    assert all(each.startswith("## ") for each in found[1:])
