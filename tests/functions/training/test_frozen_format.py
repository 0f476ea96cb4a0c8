"""Frozen weights lie in memory in the precision's number format, learnt ones in float32, however many workers hold them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conditions.devices import card
from tests.functions.training.forked import answers
from tests.functions.training.format_worker import LORAS, PRECISIONS, all_found, formats, trainer_of
from tests.functions.training.recipes import FAST, Stack, Sums
from tests.functions.training.test_classifier import encoder, table
from tests.functions.training.test_llm import SPEC, base
from toque.functions.training import Lora, TextClassifier
from toque.functions.training.llm.classifier_job import LabelledTexts, classifier_task
from toque.functions.training.llm.job import write_folder
from toque.functions.training.llm.network import Pretrained, new_classifier, new_network
from toque.functions.training.loop.first_weights import Initialised, reset, without_weights
from toque.functions.training.loop.process_group import SingleProcess
from toque.functions.training.loop.training_loop import Trainer
from toque.functions.training.params import RecipeParams
from toque.registry import open_store

transformers = pytest.importorskip("transformers")

__all__ = ["base", "encoder"]  # fixtures
FORMATS = {"fp32": "torch.float32", "bf16": "torch.bfloat16"}
STORED = [torch.bfloat16, torch.float32, torch.float16]


def stored_in(base: Path, folder: Path, dtype: torch.dtype) -> Path:
    """The base in another number format."""
    transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def check(got: dict[str, Any]) -> None:
    """Check what one worker found, by precision and by what is learnt."""
    for precision in PRECISIONS:
        adapted, whole = got[f"{precision} adapters"], got[f"{precision} whole"]
        assert adapted["frozen"] == [FORMATS[precision]]
        assert (whole["frozen"], whole["frozen bytes"]) == ([], 0)
        for each in (adapted, whole):
            assert each["learnt"] == each["saved"] == ["torch.float32"]
            assert each["taken up"] == 1
            assert each["same"]
            assert each["resumed"] == each["losses"]
            assert each["losses"][1] < each["losses"][0]
    for name in LORAS:
        for exact, rounded in zip(got[f"fp32 {name}"]["losses"], got[f"bf16 {name}"]["losses"], strict=True):
            assert rounded == pytest.approx(exact, rel=0.02)
    half, full = (got[f"{precision} adapters"]["frozen bytes"] for precision in ("bf16", "fp32"))
    assert full == 2 * half > 0


@pytest.mark.parametrize("stored", STORED)
def test_one_process_holds_frozen_weights_in_the_precision_and_resumes_bit_for_bit(base, tmp_path, stored):
    folder = stored_in(base, tmp_path / "base", stored)
    check(all_found(folder, open_store(f"file://{tmp_path}/store"), SingleProcess()))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_two_workers_hold_and_learn_what_one_does(base, tmp_path, sharding):
    folder = stored_in(base, tmp_path / "base", torch.bfloat16)
    alone = all_found(folder, open_store(f"file://{tmp_path}/alone"), SingleProcess())
    (tmp_path / "workers").mkdir()
    command = [
        sys.executable, "-m", "tests.functions.training.format_worker", tmp_path / "workers", folder,
        f"file://{tmp_path}/store", sharding,
    ]  # fmt: skip
    done = subprocess.run(
        command, text=True, capture_output=True, timeout=500, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[Any] = answers(tmp_path / "workers")
    assert len(found) == 2
    for got in found:
        check(got)
        for name, one in alone.items():
            # sharded layers compute all they do in bfloat16, norms and residuals too
            near = 1e-4 if name.startswith("fp32") else 0.02
            for ours, theirs in zip(got[name]["losses"], one["losses"], strict=True):
                assert ours == pytest.approx(theirs, rel=near)
    for name, one in alone.items():
        held = [got[name]["frozen bytes"] for got in found]
        assert sum(held) == one["frozen bytes"] * (1 if sharding == "shard" else 2)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("lora", LORAS.values(), ids=LORAS)
def test_a_card_holds_the_formats_that_a_processor_does(base, tmp_path, precision, lora):
    net = transformers.AutoModelForCausalLM.from_pretrained(base, tie_word_embeddings=False)
    base = stored_in(base, tmp_path / "base", torch.bfloat16)  # the tokenizer
    net.save_pretrained(base)  # a simulated card has no weight that two modules share
    host = trainer_of(base, precision, lora, SingleProcess())
    with card() as device:
        there = trainer_of(base, precision, lora, SingleProcess(device)).net
        assert {each.device.type for each in there.parameters()} == {"cuda"}
        for learnt in (False, True):
            assert formats(there, learnt=learnt) == formats(host.net, learnt=learnt)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("recompute", [False, True])
def test_a_classifier_by_adapters_learns_its_head_in_float32_on_a_frozen_encoder(
    encoder, precision, recompute
):
    params = RecipeParams(lr=5e-3, epochs=2, batch_size=16, precision=precision, recompute=recompute)
    spec = TextClassifier(base="enc@1", length=16, params=params, lora=Lora(rank=4, alpha=8.0))
    labelled = LabelledTexts(None, ("text",), "kind", "binary", ("0", "1"))
    net, head = new_classifier(encoder, spec.lora, ("0", "1"), several=False)
    task = classifier_task(spec, encoder, labelled, table("binary"), head.fields)
    trainer = Trainer(net, task, params, SingleProcess(), Pretrained(encoder, 0, head))
    first, second = trainer.run_epoch(), trainer.run_epoch()
    assert formats(net, learnt=False) == [FORMATS[precision]]
    assert formats(net, learnt=True) == ["torch.float32"]
    assert second.valid_loss < first.valid_loss


@pytest.mark.parametrize("lora", LORAS.values(), ids=LORAS)
@pytest.mark.parametrize("stored", STORED)
def test_what_was_not_learnt_is_in_the_result_as_the_base_has_it(base, tmp_path, stored, lora):
    folder = stored_in(base, tmp_path / "base", stored)
    net = SingleProcess().place(new_network(folder, lora), Pretrained(folder, 0), half=True)
    learnt = {name: value for name, value in net.state_dict().items() if lora is None or ".lora_" in name}
    spec = SPEC.model_copy(update={"lora": lora})
    write_folder(folder, tmp_path / "out", spec, learnt)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == str(stored).removeprefix("torch.")
    before, after = (
        transformers.AutoModelForCausalLM.from_pretrained(each, dtype="auto").state_dict()
        for each in (folder, tmp_path / "out")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("built", ["whole", "without weights"])
def test_frozen_weights_of_a_network_whose_result_has_them_stay_as_they_are(built):
    source = Initialised(reset, 0) if built == "without weights" else None
    if source:
        with without_weights():
            net = Stack(6)
    else:
        net = Stack(6)
    next(net.parameters()).requires_grad_(False)
    half = FAST.model_copy(update={"precision": "bf16", "epochs": 1})
    trainer = Trainer(net, Sums(1.0), half, SingleProcess(), source)
    trainer.run_epoch()
    assert formats(net, learnt=False) == formats(net, learnt=True) == ["torch.float32"]
