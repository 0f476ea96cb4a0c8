"""Two workers that fine-tune a small language model together: a folder for what they find, the base, and how they share it.

Each leaves the losses of its epochs, by objective. With a number of bytes, each tunes a large base instead, and dies when it asks
for more than these.
"""

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import torch

from tests.functions.training.forked import on_workers
from tests.functions.training.memory_worker import taken
from toque.functions.training import Lora, Preference, RecipeParams
from toque.functions.training.llm.fine_tune import FineTune
from toque.functions.training.llm.job import PreferenceTask, preference_task, text_task
from toque.functions.training.llm.network import Pretrained, new_network
from toque.functions.training.llm.texts import IGNORED, Rows, TextTask
from toque.functions.training.loop.process_group import (
    ProcessGroup,
    ReplicatedGroup,
    ShardedGroup,
)
from toque.functions.training.loop.training_loop import Trainer, train

WORKERS = 2
PARAMS = RecipeParams(lr=5e-3, epochs=2, batch_size=4, weight_decay=0.0)
ADAPTERS = Lora(rank=4, alpha=8.0)
FEW_ADAPTERS = ADAPTERS.model_copy(update={"targets": ("q_proj", "v_proj")})
SPECS = {
    "lora": FineTune(base="tiny@1", length=32, lora=ADAPTERS, params=PARAMS),
    "whole": FineTune(base="tiny@1", length=32, lora=None, params=PARAMS),
    "preference": FineTune(
        base="tiny@1", length=32, lora=ADAPTERS, preference=Preference(beta=0.5), params=PARAMS
    ),
}
LAYERS, WIDTH, INNER = 40, 512, 2_048  # many layers: up to three are there at once while the next is gathered
LARGE = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "vocab_size": 64,
}
LAYER_BYTES = 4 * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER)
LARGE_BYTES = LAYERS * LAYER_BYTES


def rows() -> pa.Table:
    """Few rows: of those held out, one packed row or one pair is left, and so none for the second worker."""
    numbers = ["one", "two", "three", "four", "five", "six"]
    asked = [
        {"role": "user", "content": f"what is the sum of {numbers[n % 3]} {numbers[n % 2]}"}
        for n in range(14)
    ]
    answers = [numbers[n % 3 + n % 2 + 1] for n in range(14)]
    said = [{"role": "assistant", "content": each} for each in answers]
    return pa.table(
        {
            "messages": [json.dumps([one, other]) for one, other in zip(asked, said, strict=True)],
            "question": [json.dumps([one]) for one in asked],
            "chosen": answers,
            "rejected": ["the sum"] * 14,
        }
    )


def losses(base: Path, objective: str, group: ProcessGroup) -> list[tuple[float, float]]:
    """Losses of the rows that are learnt from and of those held out, by epoch."""
    spec, table = SPECS[objective], rows()
    if spec.preference:
        table = table.drop_columns("messages").rename_columns({"question": "messages"})
    task = (preference_task if spec.preference else text_task)(spec, base, table)
    assert task.valid_rows == 1
    trainer = Trainer(new_network(base, spec.lora), task, PARAMS, group, Pretrained(base, 0))
    if isinstance(task, PreferenceTask):
        task.refer_to(trainer.net, group, rows=4, half=False)
    train(trainer, group)
    return [(epoch.train_loss, epoch.valid_loss) for epoch in trainer.epochs]


def small(base: Path, make: Callable[[], ProcessGroup]) -> Callable[[int], object]:
    return lambda _: {objective: losses(base, objective, make()) for objective in SPECS}


def some_rows(count: int) -> Rows:
    ids = torch.arange(count * 16).reshape(count, 16) % 60
    labels = torch.cat([torch.full((count, 1), IGNORED), ids[:, 1:]], 1)
    return Rows(ids, labels, torch.arange(16).expand(count, 16))


def large(base: Path, make: Callable[[], ProcessGroup], allowed: int) -> Callable[[int], object]:
    def work(_: int) -> object:
        group = make()  # once: each has threads, whose stacks count, though nothing of them is used
        losses(base.parent / "tiny", "lora", group)  # libraries are there before the count begins
        before = taken("VmData")
        Path("/proc/self/clear_refs").write_text("5")
        resident = taken("VmRSS")
        resource.setrlimit(resource.RLIMIT_DATA, (before + allowed, before + allowed))
        params = PARAMS.model_copy(update={"recompute": True})
        task = TextTask(some_rows(4), some_rows(1))
        trainer = Trainer(new_network(base, FEW_ADAPTERS), task, params, group, Pretrained(base, 0))
        found = [trainer.run_epoch().valid_loss for _ in range(2)]
        return {"losses": found, "peak": taken("VmHWM") - resident}

    return work


if __name__ == "__main__":
    folder, base, sharding, *allowed = sys.argv[1:]
    count = 1 if sharding == "alone" else WORKERS
    make = ShardedGroup if sharding == "shard" else ReplicatedGroup
    work = large(Path(base), make, int(allowed[0])) if allowed else small(Path(base), make)
    sys.exit(max(abs(code or 0) for code in on_workers(count, Path(folder), work)))
