"""The training of a language model by transformers, peft and torch alone, to set beside ours."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from toque.functions.training import RecipeParams
from toque.functions.training.llm.texts import IGNORED, TextTask
from toque.functions.training.loop.task import epoch_seed, uniform_order
from toque.functions.training.loop.updates import one_cycle


def learn_alone(
    net: Any, begin: dict[str, torch.Tensor], task: TextTask, params: RecipeParams
) -> list[list[tuple[float, int]]]:
    """Train a network of transformers, perhaps with adapters of peft, in our order of rows; the loss of a token in each step of each epoch, and the step's tokens.

    begin: the weights that are learnt, as they are at first: an adapter begins at random.
    """
    net.load_state_dict({name: value.clone() for name, value in begin.items()}, strict=False)
    learnt = [each for each in net.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=params.lr, weight_decay=params.weight_decay)
    steps, losses = task.train_rows // params.batch_size, list[list[tuple[float, int]]]()
    cycle = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(one_cycle, total=steps * params.epochs))
    net.train()
    for epoch in range(params.epochs):
        order = uniform_order(task.train_rows, epoch_seed(params.seed, epoch))
        losses.append([])
        for first in range(0, steps * params.batch_size, params.batch_size):
            ids, labels, positions = task.train_batch(order[first : first + params.batch_size])
            logits = net(input_ids=ids, position_ids=positions, use_cache=False).logits
            loss = net.loss_function(logits, labels, vocab_size=logits.shape[-1])  # the mean over its tokens
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learnt, params.clip)
            optimizer.step()
            cycle.step()
            optimizer.zero_grad()
            losses[-1].append((float(loss.detach()), int((labels[:, 1:] != IGNORED).sum())))
    return losses
