"""Two workers that fine-tune a small language model together: a folder for what they find, the base, and how they share it.

Each leaves the losses of its epochs, by objective.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from functions.training import Lora, Preference, RecipeParams
from functions.training.llm.fine_tune import FineTune
from functions.training.llm.job import preference_task, text_task
from functions.training.llm.network import Pretrained, new_network
from functions.training.llm.preferences import PreferenceTask
from functions.training.loop.process_group import ProcessGroup, ReplicatedGroup, ShardedGroup
from functions.training.loop.training_loop import Trainer, train
from tests.functions.training.forked import on_workers

WORKERS = 2
PARAMS = RecipeParams(lr=5e-3, epochs=2, batch_size=4, weight_decay=0.0)
ADAPTERS = Lora(rank=4, alpha=8.0)
SPECS = {
    "lora": FineTune(base="tiny@1", length=32, lora=ADAPTERS, params=PARAMS),
    "whole": FineTune(base="tiny@1", length=32, lora=None, params=PARAMS),
    "preference": FineTune(
        base="tiny@1", length=32, lora=ADAPTERS, preference=Preference(beta=0.5), params=PARAMS
    ),
}


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


if __name__ == "__main__":
    folder, base, sharding = sys.argv[1:]
    make = ShardedGroup if sharding == "shard" else ReplicatedGroup
    todo = small(Path(base), make)
    sys.exit(max(abs(code or 0) for code in on_workers(WORKERS, Path(folder), todo)))
