"""A fine-tune of the real SmolLM2-135M by adapters, beside peft and transformers alone."""

import json
import sys
from copy import deepcopy
from itertools import chain

import pyarrow as pa
import pytest
import torch

from examples.gpt.tune import from_gguf
from tests.functions.training.peft_alone import learn_alone
from tests.language_model import language_model_weights
from toque.functions.training import RecipeParams
from toque.functions.training.llm import FineTune, Lora, fine_tune
from toque.functions.training.llm.job import SIGNATURE, text_task
from toque.functions.training.llm.network import Pretrained, adapted, new_network
from toque.functions.training.llm.texts import TextTask, learnt_tokens
from toque.functions.training.loop.process_group import SingleProcess
from toque.functions.training.loop.training_loop import Trainer
from toque.registry import Table

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

CAPITALS = {
    "Norway": "Oslo",
    "Peru": "Lima",
    "Ghana": "Accra",
    "Cuba": "Havana",
    "Japan": "Tokyo",
    "Chad": "N'Djamena",
}
PARAMS = RecipeParams(lr=2e-4, epochs=2, batch_size=2, weight_decay=0.0)
SPEC = FineTune(base="smollm2@1", length=96, lora=Lora(rank=8, alpha=16.0), params=PARAMS)


def conversation(country: str, capital: str, number: int) -> str:
    """A question with a number of words, so that texts differ in length, and some rows hold one and others two."""
    asked = {"role": "user", "content": f"{'Please: ' * number}what is the capital of {country}?"}
    return json.dumps([asked, {"role": "assistant", "content": f"{capital}."}])


@pytest.fixture
def steps(monkeypatch):
    """Losses of the steps that a training in this process takes."""
    losses, whole = [], TextTask.loss

    def loss(self, module, batch, *, reduction="mean"):
        found = whole(self, module, batch, reduction=reduction)
        if module.training:
            losses.append(float(found.detach()) / learnt_tokens(batch[1]))
        return found

    monkeypatch.setattr(TextTask, "loss", loss)
    return losses


def logits(net, task):
    """What a network makes of the rows that were held out, in float32 and float64: in the first its rounding alone is 7.5e-5."""
    ids, _, positions = task.valid_batch(torch.arange(task.valid_rows))
    with torch.inference_mode():
        return [
            each(input_ids=ids, position_ids=positions, use_cache=False).logits.double()
            for each in (net.eval(), deepcopy(net).double())
        ]


@pytest.mark.proof
@pytest.mark.timeout(1_800)
def test_losses_of_all_steps_and_merged_logits_are_those_of_peft_alone(context, tmp_path, steps):
    base = from_gguf(language_model_weights(), tmp_path / "base")
    rows = pa.table(
        {"messages": [conversation(*each, n) for n in range(0, 9, 3) for each in CAPITALS.items()]}
    )
    registry = context.registry()
    registry.create_model("smollm2")
    registry.create_version("smollm2", base, signature=SIGNATURE)
    snapshot = Table(context.store, "training/capitals").overwrite(rows)
    tuned = fine_tune(
        "capitals", "smollm2@1", snapshot, length=SPEC.length, lora=SPEC.lora, params=SPEC.params
    )
    assert tuned.best_epoch == PARAMS.epochs - 1  # whose weights are written: the last, as alone

    task = text_task(SPEC, base, rows)
    begin = Trainer(
        new_network(base, SPEC.lora), task, PARAMS, SingleProcess(), Pretrained(base, PARAMS.seed)
    ).learnt()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = logits(theirs, task)
    theirs = adapted(theirs, SPEC.lora)
    alone = [loss for loss, _ in chain(*learn_alone(theirs, begin, task, PARAMS))]
    wanted = logits(theirs.merge_and_unload(), task)

    registry.download("capitals", tuned.version, to=tmp_path / "got")
    got = logits(
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "got", dtype=torch.float32), task
    )
    furthest = max(abs(one - other) for one, other in zip(steps, alone, strict=True))
    rounded, apart = (float((ours - one).abs().max()) for ours, one in zip(got, wanted, strict=True))
    learnt = float((before[1] - wanted[1]).abs().max())
    sys.stdout.write(
        f"{len(alone)} steps, {alone[0]:.4f} to {alone[-1]:.4f}, losses differ by {furthest:.1e}; merged logits, which the "
        f"training has changed by {learnt:.2f}, by {apart:.1e}, computed in float32 by {rounded:.1e}\n"
    )
    assert furthest <= 1e-4
    assert apart <= 1e-4
    assert learnt > 1.0
