"""Share of a card's peak (MFU) that training a decoder of 1.2 billion weights reaches: the platform's loop beside a plain one.

The plain loop does as torchtitan's for one card: blocks compiled one by one, FSDP2 with its mixed precision, a compiled loss, gradients
clipped, fused AdamW. Both train the same network from the same weights on the same rows in bfloat16; a step counts once the card is
done with it, from the sixth on. Operations of a token are counted as torchtitan counts them. The exit code is 1 if the platform is
below .95 of the plain loop. Without a CUDA device both loops train a tiny decoder, and nothing is measured.
Source: torchtitan 0.3.0, `models/llama3/parallelize.py`, `trainer.py` and `models/utils.py`.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

from toque.functions.training.llm.texts import TextTask
from toque.functions.training.loop.process_group import SingleProcess
from toque.functions.training.loop.task import epoch_seed, uniform_order
from toque.functions.training.loop.training_loop import Trainer
from toque.functions.training.loop.updates import one_cycle
from toque.functions.training.params import RecipeParams
from toque.functions.training.planning import CARDS, Card, Decoder, Setup, plan
from toque.load.benchmarks.harness import NotPossible, bound, in_turns, main, say
from toque.load.benchmarks.training.fixtures import network, random_rows

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


@dataclass(frozen=True, slots=True)
class Steps:
    """Loss and speed of a loop. loss: mean of its steps; step_s: median of those after the warm-up, NaN if there were none."""

    loss: float
    step_s: float


def run(*, steps: int = 20, rounds: Annotated[int, "of both loops, in turn"] = 2) -> None:
    """Train both ways, and print tokens a second, MFU and their ratio."""
    if steps <= WARM_UPS:
        raise NotPossible(f"--steps {steps}: the first {WARM_UPS} do not count; ask for more")
    if not torch.cuda.is_available():
        job = Job(TINY, Setup(1, 4, 32, "replicate", half=False), steps, "cpu", compiled=False)
        losses = (platform_loop(job).loss, plain_loop(job).loss)
        told = "mean loss {:.5f} by the platform, {:.5f} by the plain loop".format(*losses)
        say(f"a tiny decoder on the CPU: {told}")
        say("MFU: not measured, there is no CUDA device here")
        return
    job = Job(BILLION, Setup(1, 4, 2_048, "replicate"), steps, "cuda", compiled=True)
    name = torch.cuda.get_device_name()
    card = card_named(name)
    if card is not None and not plan(job.model, job.setup, card).fits:
        weights = f"{job.model.parameters / 1e9:.1f} billion weights"
        raise NotPossible(f"{name}: {weights} and their rows do not fit; take a larger card")
    calls = {"platform": partial(_alone, platform_loop, job), "plain": partial(_alone, plain_loop, job)}
    speeds = []
    for loop, results in in_turns(calls, rounds).items():
        speeds.append(job.setup.batch * job.setup.length / statistics.median(one.step_s for one in results))
        share = "unknown, as the card's peak is" if card is None else f"{mfu(job, speeds[-1], card):.1%}"
        say(f"{name}: {loop:<8} {speeds[-1]:,.0f} tokens/s, MFU {share}, loss {results[0].loss:.4f}")
    bound("the platform's speed of the plain loop's", speeds[0] / speeds[1], least=LEAST_RATIO)


def _alone(loop: Callable[[Job], Steps], job: Job) -> Steps:
    torch.compiler.reset()
    torch.cuda.empty_cache()
    return loop(job)


def mfu(job: Job, tokens_s: float, card: Card) -> float:
    """Share of the card's peak in bfloat16, attention counted as if it saw all tokens."""
    return _PASSES * job.model.token_flops(job.setup.length) * tokens_s / card.flops_s


def card_named(name: str) -> Card | None:
    """Find a card by the name that its driver has for it; None if its peak is not known."""
    words = name.lower().replace("-", " ").split()
    return next((card for kind, card in CARDS.items() if "-" not in kind and kind in words), None)


def platform_loop(job: Job) -> Steps:
    """Train as a recipe is trained."""
    rows = random_rows(job.model, job.setup.batch * job.steps, job.setup.length)
    params = RecipeParams(
        lr=LR, weight_decay=0.0, batch_size=job.setup.batch, epochs=1, clip=CLIP, compiled=job.compiled,
        precision="bf16" if job.setup.half else "fp32", checkpoint_s=None,
    )  # fmt: skip
    net, clock = network(job.model, job.setup.length), _Clock(job.device)
    trainer = Trainer(net, TextTask(rows, rows), params, SingleProcess(job.device))
    loss = trainer._pass_over_training_rows(clock)  # noqa: SLF001 - an epoch without its validation
    return Steps(loss, clock.step_s)


def plain_loop(job: Job) -> Steps:
    """Train in a loop that has nothing but the steps."""
    with _single_group(job.device):
        net = _sharded(job)
        optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=0.0, fused=True)
        schedule = LambdaLR(optimizer, lambda step: one_cycle(step, job.steps))
        loss_of: Callable[..., torch.Tensor] = torch.compile(_loss) if job.compiled else _loss
        rows = random_rows(job.model, job.setup.batch * job.steps, job.setup.length)
        order = uniform_order(len(rows.ids), epoch_seed(0, 0))
        total, clock = torch.zeros((), device=job.device), _Clock(job.device)
        for step in range(job.steps):
            batch = order[step * job.setup.batch : (step + 1) * job.setup.batch]
            ids = rows.ids[batch].to(job.device, non_blocking=True)
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
    net: Any = network(job.model, job.setup.length).to(job.device)
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
    main(run, "torch", "transformers")
