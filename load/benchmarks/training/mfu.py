"""Share of a card's peak (MFU) that training a decoder of 1.2 billion weights reaches: the platform's loop beside a plain one.

python -m toque.load.benchmarks.training.mfu [--steps 20] [--rounds 2]

The plain loop does as torchtitan's for one card: blocks compiled one by one, FSDP2 with its mixed precision, a compiled loss, gradients
clipped, fused AdamW. Both train the same network from the same weights on the same rows in bfloat16; a step counts once the card is
done with it, from the sixth on. Operations of a token are counted as torchtitan counts them. The exit code is 1 if the platform is
below .95 of the plain loop. Without a CUDA device both loops train a tiny decoder, and nothing is measured.
Source: torchtitan 0.3.0, `models/llama3/parallelize.py`, `trainer.py` and `models/utils.py`.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

from toque.functions.training.llm.texts import Rows, TextTask
from toque.functions.training.loop.process_groups.process_group import SingleProcess
from toque.functions.training.loop.task import epoch_seed, uniform_order
from toque.functions.training.loop.training_loop import Trainer
from toque.functions.training.loop.updates import one_cycle
from toque.functions.training.params import RecipeParams
from toque.functions.training.planning import CARDS, Card, Decoder, Setup, plan
from toque.load.benchmarks.timing import print_machine

LEAST_RATIO, WARM_UPS, LR, CLIP = 0.95, 5, 3e-4, 1.0
BILLION = Decoder(16, 2_048, 32, 8, 64, 8_192, 128_256, tied=True)
TINY = Decoder(2, 64, 4, 2, 16, 128, 256, tied=True)
_PASSES = 3  # forward, and twice as much for the gradients


@dataclass(frozen=True, slots=True)
class Job:
    """Training of `model` for some steps. device: "cuda" or "cpu"; compiled: through torch.compile; rows in bfloat16 if setup.half."""

    model: Decoder
    setup: Setup
    steps: int
    device: str
    compiled: bool

    def network(self) -> nn.Module:
        """Make the network with weights that are the same each time."""
        from transformers import AutoModelForCausalLM, LlamaConfig  # late: the extra `llm`

        model = self.model
        config = LlamaConfig(
            num_hidden_layers=model.layers, hidden_size=model.width, num_attention_heads=model.heads,
            num_key_value_heads=model.key_heads, head_dim=model.head_width, intermediate_size=model.inner,
            vocab_size=model.vocabulary, max_position_embeddings=self.setup.length, tie_word_embeddings=model.tied,
        )  # fmt: skip
        made: Any = AutoModelForCausalLM
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net: nn.Module = made.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
        return net.train()

    def rows(self) -> Rows:
        """Draw the rows of all steps, the same each time."""
        count, length = self.setup.batch * self.steps, self.setup.length
        chance = torch.Generator().manual_seed(0)
        ids = torch.randint(self.model.vocabulary, (count, length), generator=chance)
        return Rows(ids, ids, torch.arange(length).expand_as(ids))


@dataclass(frozen=True, slots=True)
class Steps:
    """Loss and speed of a loop. loss: mean of its steps; step_s: median of those after the warm-up, NaN if there were none."""

    loss: float
    step_s: float


def main() -> None:
    """Train both ways, and print tokens a second, MFU and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2, help="of both loops, in turn")
    given = parser.parse_args()
    if given.steps <= WARM_UPS:
        parser.error(f"--steps {given.steps}: the first {WARM_UPS} do not count; ask for more")
    print_machine("torch", "transformers")
    if not torch.cuda.is_available():
        job = Job(TINY, Setup(1, 4, 32, "replicate", half=False), given.steps, "cpu", compiled=False)
        ours, plain = platform_loop(job), plain_loop(job)
        print(
            f"a tiny decoder on the CPU: mean loss {ours.loss:.5f} by the platform, {plain.loss:.5f} by the plain loop"
        )
        print("MFU: not measured, there is no CUDA device here")
        return
    job = Job(BILLION, Setup(1, 4, 2_048, "replicate"), given.steps, "cuda", compiled=True)
    sys.exit(_measure(job, given.rounds) < LEAST_RATIO)


def _measure(job: Job, rounds: int) -> float:
    """Train on the card, print, and return the platform's speed over the plain loop's."""
    name = torch.cuda.get_device_name()
    card = card_named(name)
    if card is not None and not plan(job.model, job.setup, card).fits:
        raise SystemExit(
            f"{name}: {job.model.parameters / 1e9:.1f} billion weights and their rows do not fit; take a larger card"
        )
    loops = {"platform": platform_loop, "plain, after torchtitan": plain_loop}
    found: dict[str, list[Steps]] = {each: [] for each in loops}
    for number in range(rounds):
        for loop in list(loops)[:: 1 if number % 2 == 0 else -1]:
            torch.compiler.reset()
            torch.cuda.empty_cache()
            found[loop].append(loops[loop](job))
    speed = {}
    for loop, runs in found.items():
        speed[loop] = job.setup.batch * job.setup.length / statistics.median(each.step_s for each in runs)
        share = "unknown, as the card's peak is" if card is None else f"{mfu(job, speed[loop], card):.1%}"
        print(
            f"{name}: {loop:<24} {speed[loop]:,.0f} tokens/s, MFU {share}, loss {runs[0].loss:.4f}",
            flush=True,
        )
    ratio = speed["platform"] / speed["plain, after torchtitan"]
    print(f"ratio {ratio:.3f}, want {LEAST_RATIO} at least")
    return ratio


def mfu(job: Job, tokens_s: float, card: Card) -> float:
    """Share of the card's peak in bfloat16, attention counted as if it saw all tokens."""
    return _PASSES * job.model.token_flops(job.setup.length) * tokens_s / card.flops_s


def card_named(name: str) -> Card | None:
    """Find a card by the name that its driver has for it; None if its peak is not known."""
    words = name.lower().replace("-", " ").split()
    return next((card for kind, card in CARDS.items() if "-" not in kind and kind in words), None)


def platform_loop(job: Job) -> Steps:
    """Train as a recipe is trained."""
    rows = job.rows()
    params = RecipeParams(
        lr=LR, weight_decay=0.0, batch_size=job.setup.batch, epochs=1, clip=CLIP, compiled=job.compiled,
        precision="bf16" if job.setup.half else "fp32", checkpoint_s=None,
    )  # fmt: skip
    trainer = Trainer(job.network(), TextTask(rows, rows), params, SingleProcess(job.device))
    clock = _Clock(job.device)
    loss = trainer._pass_over_training_rows(clock)  # noqa: SLF001 - an epoch without its validation
    return Steps(loss, clock.step_s)


def plain_loop(job: Job) -> Steps:
    """Train in a loop that has nothing but the steps."""
    with _single_group(job.device):
        net = _sharded(job)
        optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=0.0, fused=True)
        schedule = LambdaLR(optimizer, lambda step: one_cycle(step, job.steps))
        loss_of: Callable[..., torch.Tensor] = torch.compile(_loss) if job.compiled else _loss
        rows, order = job.rows(), uniform_order(job.setup.batch * job.steps, epoch_seed(0, 0))
        total, clock = torch.zeros((), device=job.device), _Clock(job.device)
        for step in range(job.steps):
            ids = rows.ids[order[step * job.setup.batch : (step + 1) * job.setup.batch]].to(
                job.device, non_blocking=True
            )
            loss = loss_of(net(input_ids=ids, use_cache=False).logits, ids)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            total += loss.detach()
            if step + 1 < job.steps:
                clock()
        return Steps(float(total) / job.steps, clock.step_s)


def _sharded(job: Job) -> nn.Module:
    """Network with its blocks compiled and split among one worker, which gives FSDP2's mixed precision."""
    net: Any = job.network().to(job.device)
    low = torch.bfloat16 if job.setup.half else None
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32 if job.setup.half else None)
    mesh = init_device_mesh(job.device, (1,))
    for block in net.model.layers:
        if job.compiled:
            block.compile(fullgraph=True)
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(net, mesh=mesh, mp_policy=policy)
    return net  # type: ignore[no-any-return]  # transformers has no types


def _loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())


class _Clock:
    """Times steps: called after each but the last, once the card is done with it."""

    def __init__(self, device: str) -> None:
        self._device, self._marks = device, [time.perf_counter()]

    def __call__(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()
        self._marks.append(time.perf_counter())

    @property
    def step_s(self) -> float:
        steps = [b - a for a, b in itertools.pairwise(self._marks)][WARM_UPS:]
        return statistics.median(steps) if steps else math.nan


@contextmanager
def _single_group(device: str) -> Iterator[None]:
    """Be the only process of a group of torch, within."""
    backend = "nccl" if device == "cuda" else "gloo"
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]  # public, not exported
    try:
        yield
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
