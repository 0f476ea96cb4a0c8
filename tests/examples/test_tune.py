"""Language models of examples/gpt.tune: from random weights, then adapters on the version that came of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.capitals.demo import Door
from examples.gpt import tune
from tests.functions.training.conftest import context, one_thread
from tests.functions.training.test_llm import base
from tests.language_model import language_model_weights
from tests.waiting import until
from toque.functions.training import Lora, RecipeParams, TrainingDataError
from toque.registry import Access, Registry, open_store

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

__all__ = ["base", "context", "one_thread"]  # fixtures
PARAMS = RecipeParams(lr=1e-2, epochs=2, batch_size=8)


def test_a_model_from_scratch_and_adapters_on_it_end_as_folders_that_transformers_opens(
    context, base, tmp_path
):
    words = ["the", "sum", "of", "one", "two", "is", "three", "what"]
    texts = [" ".join(words[n % 4 :] + words[: n % 4]) for n in range(40)]
    folder = tune.from_scratch(base, tmp_path / "scratch", width=64, layers=3)
    whole = tune.tune(context, folder, texts, lora=None, length=16, params=PARAMS)
    registry = context.registry()
    registry.download(tune.MODEL, whole.version, to=tmp_path / "whole")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "whole")
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (64, 3, 18)
    adapted = tune.tune(context, tmp_path / "whole", texts, lora=Lora(rank=2), length=16, params=PARAMS)
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
    few = tune.sections(7)
    assert len({*few}) == 7
    assert [each for each in found if each in few] == few
    assert tune.sections(10_000) == found
    with pytest.raises(TrainingDataError, match=r"sections: 0 .*; give at least 1"):
        tune.sections(0)


def test_the_command_ends_with_the_message_before_it_reads_the_base(tmp_path):
    line = [
        sys.executable,
        "-m",
        "examples.gpt.tune",
        "--folder",
        str(tmp_path / "absent"),
        "--sections",
        "0",
    ]
    ended = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("examples.gpt.tune: sections: 0 ")
    assert ended.stderr.count("\n") == 1


@pytest.mark.proof  # two minutes on two cores
@pytest.mark.timeout(1_800)
def test_smollm2_and_a_model_from_scratch_learn_the_notes_and_are_served(tmp_path):
    gguf, url = language_model_weights(), f"file://{tmp_path}/store"
    for more in (["--sections", "8"], ["--sections", "40", "--scratch", "--width", "128", "--layers", "2"]):
        line = [sys.executable, "-m", "examples.gpt.tune", "--gguf", str(gguf), "--length", "128", *more]
        output = subprocess.run(
            line, env={**os.environ, "TOQUE_STORE": url}, check=True, capture_output=True, text=True
        ).stdout
        assert "toque promote notes-chat" in output
    store = open_store(url)
    registry = Registry(store, actor="test")
    assert [each.lineage.parent for each in registry.list_versions(tune.SERVED)] == [None, 1, 1]
    token = Access(store, actor="test").create_token("test", "caller")
    with Door.open(url, token, Path(tmp_path, "door.log"), threads=2) as door:
        for version in (2, 3):
            registry.promote(tune.SERVED, version)
            until(lambda: door.ask(tune.SERVED, "France").version == version)  # noqa: B023 - asked at once
