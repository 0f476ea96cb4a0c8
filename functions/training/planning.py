"""Plan of one training: what a card holds at its fullest, what a step takes, what all costs; refused if it cannot fit.

Memory is counted, tensor by tensor. Time follows from operations at a share of the card's peak, which a short run measures; without
one it is a share that published runs reach. Sizes of a model are read from the `config.json` of a Hugging Face folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

REACHED = 0.35  # of a card's peak; published runs of dense decoders reach .27 to .42
USABLE = 0.92  # of a card's memory: the rest is the driver's, the libraries' and lost between blocks
NETWORK_BYTES_S = 50e9  # of a card between machines: 400 Gb/s
_FLOAT, _HALF = 4, 2  # bytes
_MOMENTS = 2  # of AdamW
_STATE_PASSES = 7  # reads and writes of a weight's state in a step
_DAY_S, _HOUR_S = 86_400.0, 3_600.0
Sharding = Literal["replicate", "shard"]
_GB, _TERA = 10**9, 10**12
_CONFIG_NAMES = {
    "layers": ("num_hidden_layers", "n_layer"),
    "width": ("hidden_size", "n_embd"),
    "heads": ("num_attention_heads", "n_head"),
    "vocabulary": ("vocab_size",),
}
_PLAIN_FAMILIES = ("gpt2", "gpt_neox", "opt", "bloom")  # whose block has two matrices in its MLP, not three
_MLP = 4  # inner width of the MLP over the width, where a configuration does not say it


@dataclass(frozen=True, slots=True)
class Setup:
    """How a model is trained. cards: workers, one each; batch: rows of `length` tokens in a step over all; lora: rank of adapters.

    accumulate, recompute, sharding, tensor: as `RecipeParams` and `train_recipe` take them; half: computes in bfloat16, and holds frozen weights in it.
    valid: share of all rows that is held out, and scored after each epoch in pieces of a step's size, which need less memory than it.
    """

    cards: int
    batch: int
    length: int
    sharding: Sharding = "shard"
    accumulate: int = 1
    recompute: bool = False
    half: bool = True
    lora: int = 0
    tensor: int = 1
    valid: float = 0.0

    @property
    def parts(self) -> int:
        """Parts of a step, each computed by cards of its own or after another."""
        return self.cards // self.tensor * self.accumulate

    @property
    def tokens(self) -> int:
        """Tokens that a card computes at once, with those that split its layers."""
        return -(-self.batch // self.parts) * self.length

    @property
    def words(self) -> str:
        """The setup as arguments of a training."""
        given = [f"num_workers={self.cards}", f'sharding="{self.sharding}"', f"batch_size={self.batch}"]
        given += [f"tensor={self.tensor}"] if self.tensor > 1 else []
        given += [f"accumulate={self.accumulate}"] if self.accumulate > 1 else []
        given += ["recompute=True"] if self.recompute else []
        return ", ".join([*given, f'precision="{"bf16" if self.half else "fp32"}"'])


@dataclass(frozen=True, slots=True)
class Plan:
    """Figures of a setup on a card: bytes a card by part, at its fullest, and seconds of a step by part."""

    setup: Setup
    memory: dict[str, float]
    step: dict[str, float]
    usable_bytes: float

    @property
    def memory_bytes(self) -> float:
        """Bytes that a card holds at its fullest."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether a card holds it."""
        return self.memory_bytes <= self.usable_bytes

    @property
    def step_s(self) -> float:
        """Seconds of one step of the optimizer, with its share of the validation."""
        return sum(self.step.values())

    @property
    def tokens_s(self) -> float:
        """Tokens a second over all cards."""
        return self.setup.batch * self.setup.length / self.step_s

    def days(self, tokens: float) -> float:
        """Days that a training on so many tokens takes."""
        return tokens / self.tokens_s / _DAY_S

    def card_hours(self, tokens: float) -> float:
        """Hours of all cards together that a training on so many tokens takes."""
        return tokens / self.tokens_s / _HOUR_S * self.setup.cards


def plan(model: Decoder, setup: Setup, card: Card, *, reached: float = REACHED) -> Plan:
    """Compute memory and time of a training. reached: share of the card's peak that its arithmetic reaches.

    Raises: ValueError if the step has fewer rows than there are pieces to compute, or layers cannot be split so.
    """
    _check_tensor(model, setup)
    if not 0.0 <= setup.valid < 1.0:
        raise ValueError(f"valid={setup.valid}: the share of rows held out lies from 0 to below 1")
    if setup.batch < setup.parts:
        raise ValueError(
            f"batch={setup.batch} rows for {setup.cards} cards with accumulate={setup.accumulate}: each piece needs a row at least"
        )
    return Plan(setup, memory(model, setup), _step(model, setup, card, reached), card.memory_bytes * USABLE)


def memory(model: Decoder, setup: Setup) -> dict[str, float]:
    """Bytes that a card holds at the fullest moment of a step, by part.

    That is where the loss is there and all activations are kept, or at the end, where all gradients are there; with `recompute` also
    where the last block is computed again.
    """
    share = setup.cards if setup.sharding == "shard" else 1
    low = _HALF if setup.half else _FLOAT
    learnt = model.adapters(setup.lora) if setup.lora else model.parameters
    frozen = model.parameters * low if setup.lora else 0  # in the precision of the arithmetic
    state = (frozen + (1 + _MOMENTS) * learnt * _FLOAT) / share
    gathered = 0.0
    if (
        setup.sharding == "shard" and setup.cards > 1
    ):  # the outer layers stay, one block works, the next is on its way
        gathered = (model.outer_parameters + 2 * model.block_parameters / setup.tensor) * low
    gradients = learnt * _FLOAT / share
    wide = model.block_width_activations
    kept = setup.tokens * (wide + (model.block_activations - wide) / setup.tensor) * low
    inputs = setup.tokens * model.width * low * model.layers
    loss = setup.tokens * (
        3 * model.width * low + model.vocabulary * (2 * _FLOAT + (low + _FLOAT if setup.half else _FLOAT))
    )
    summed = gradients if setup.accumulate > 1 else 0.0
    at_loss = {
        "activations": inputs if setup.recompute else kept * model.layers,
        "logits": loss,
        "gradients": summed,
    }
    moments = [at_loss, {"activations": kept, "logits": 0.0, "gradients": gradients}]
    if setup.recompute:  # the last block is computed again once the loss's memory is free
        moments.append({"activations": inputs + kept, "logits": 0.0, "gradients": summed})
    fullest = max(moments, key=lambda each: sum(each.values()))
    return {"weights and moments": state, "gathered weights": gathered} | fullest


def _step(model: Decoder, setup: Setup, card: Card, reached: float) -> dict[str, float]:
    """Seconds of a step, by part; communication counts where the arithmetic does not hide it."""
    share = setup.cards if setup.sharding == "shard" else 1
    passes = 2.0 if setup.lora else 3.0  # a frozen weight has no gradient to compute
    of_token = passes * model.token_flops(setup.length, tensor=setup.tensor)
    if setup.recompute:
        passes += 1.0
        of_token += model.block_flops(setup.length, tensor=setup.tensor)
    tokens, flops_s = (
        setup.tokens * setup.accumulate,
        (card.flops_s if setup.half else card.flops32_s) * reached,
    )
    compute = tokens * of_token / flops_s
    scored = tokens * setup.valid / (1 - setup.valid) * model.token_flops(setup.length, tensor=setup.tensor)
    learnt = model.adapters(setup.lora) if setup.lora else model.parameters
    update = learnt / share * _FLOAT * _STATE_PASSES / card.bytes_s
    link = card.node_bytes_s if setup.cards <= card.cards else NETWORK_BYTES_S
    low = _HALF if setup.half else _FLOAT
    if setup.sharding == "shard":  # gathered for both passes and reduced, in each micro-batch
        sent = setup.accumulate * (2 * model.parameters * low + learnt * _FLOAT) / setup.tensor
    else:
        sent = 2 * learnt * _FLOAT
    wire = sent * (setup.cards - 1) / setup.cards / link
    hidden = compute if setup.sharding == "shard" else compute * (1 - 1 / passes)
    return {
        "arithmetic": compute,
        "update": update,
        "communication": max(0.0, wire - hidden) + _sums(model, setup, card, passes),
        "validation": scored / flops_s,
    }


def _sums(model: Decoder, setup: Setup, card: Card, passes: float) -> float:
    """Seconds of a step in which cards that split layers wait for each other's sums: two of a block in each pass, before it can go on."""
    link = card.node_bytes_s if setup.tensor <= card.cards else NETWORK_BYTES_S
    one = setup.tokens * model.width * (_HALF if setup.half else _FLOAT)
    there_and_back = 2 * (setup.tensor - 1) / setup.tensor
    rounds = passes - 1.0  # the gradients of weights need no sum
    return 2 * model.layers * setup.accumulate * rounds * one * there_and_back / link


def proposed(
    model: Decoder, setup: Setup, card: Card, *, reached: float = REACHED, most_cards: int = 4_096
) -> Plan | None:
    """Find the setup with the fewest card-hours that fits, of those with as many cards as asked, or else the next power of two.

    Layers are split only where nothing else fits, by as few cards as it takes, and within a machine.
    Returns: None if none fits, up to `most_cards`.
    """
    cards = setup.cards
    while cards <= min(most_cards, setup.batch * card.cards):
        for tensor in _tensors(model, setup, cards, card):
            ways = _plans(model, replace(setup, cards=cards, tensor=tensor), card, reached)
            found = [each for each in ways if each.fits]
            if found:
                return min(found, key=lambda each: each.step_s)
        cards = 1 << cards.bit_length()
    return None


def _tensors(model: Decoder, setup: Setup, cards: int, card: Card) -> Iterator[int]:
    """Numbers of cards of a machine that may split a layer, the fewest first; adapters are not split."""
    for tensor in range(1, (1 if setup.lora else min(cards, card.cards)) + 1):
        if cards % tensor == 0 and model.splits_into(tensor):
            yield tensor


def _check_tensor(model: Decoder, setup: Setup) -> None:
    given = f"tensor={setup.tensor} of {setup.cards} cards"
    if setup.tensor < 1 or setup.cards % setup.tensor or not model.splits_into(setup.tensor):
        raise ValueError(
            f"{given}: it divides the cards, and the model's heads ({model.heads}), those of keys ({model.key_heads}) and the inner "
            f"width ({model.inner})"
        )
    if setup.tensor > 1 and (setup.sharding != "shard" or setup.lora):
        raise ValueError(f"{given}: layers are split with sharding='shard' and without adapters")


def _plans(model: Decoder, setup: Setup, card: Card, reached: float) -> Iterator[Plan]:
    """Plans of all ways to compute the same step on so many cards."""
    kinds: tuple[Sharding, ...] = ("replicate", "shard") if setup.cards > 1 else ("replicate",)
    for sharding in kinds if setup.tensor == 1 else ("shard",):
        for recompute in (False, True):
            accumulate = 1
            while accumulate * (setup.cards // setup.tensor) <= setup.batch:
                way = replace(setup, sharding=sharding, recompute=recompute, accumulate=accumulate)
                yield plan(model, way, card, reached=reached)
                accumulate *= 2


@dataclass(frozen=True, slots=True)
class Card:
    """Card of a kind, with the memory `memory_bytes`. flops_s: of dense matrices in bfloat16; flops32_s: in float32, TF32 where it has it.

    bytes_s: of its memory; node_bytes_s: of its link to the others of a machine, one way; cards: in a machine.
    """

    memory_bytes: float
    flops_s: float
    flops32_s: float
    bytes_s: float
    node_bytes_s: float
    cards: int = 8


# Source: the makers' data sheets; links one way. A100 and H100: SXM with NVLink 3 and 4; L4, L40S, T4: PCIe.
CARDS = {
    "h200": Card(141 * _GB, 989 * _TERA, 494 * _TERA, 4.8 * _TERA, 450 * _GB),
    "h100": Card(80 * _GB, 989 * _TERA, 494 * _TERA, 3.35 * _TERA, 450 * _GB),
    "a100": Card(80 * _GB, 312 * _TERA, 156 * _TERA, 2.0 * _TERA, 300 * _GB),
    "a100-40": Card(40 * _GB, 312 * _TERA, 156 * _TERA, 1.55 * _TERA, 300 * _GB),
    "l40s": Card(48 * _GB, 362 * _TERA, 183 * _TERA, 0.86 * _TERA, 32 * _GB),
    "l4": Card(24 * _GB, 121 * _TERA, 60 * _TERA, 0.3 * _TERA, 32 * _GB),
    "a10g": Card(24 * _GB, 70 * _TERA, 35 * _TERA, 0.6 * _TERA, 32 * _GB),
    "t4": Card(16 * _GB, 65 * _TERA, 8 * _TERA, 0.32 * _TERA, 16 * _GB, 4),
}


@dataclass(frozen=True, slots=True)
class Decoder:
    """Sizes of a decoder-only transformer. key_heads: of keys and values; inner: width of the MLP; gated: whether it has a third matrix.

    tied: whether the last layer is the embedding; positions: learnt ones.
    """

    layers: int
    width: int
    heads: int
    key_heads: int
    head_width: int
    inner: int
    vocabulary: int
    gated: bool = True
    tied: bool = False
    positions: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Decoder:
        """Read the sizes from a configuration. Raises: ValueError, naming the field that is missing or not a size."""
        size = {name: _size(config, fields) for name, fields in _CONFIG_NAMES.items()}
        gated = config.get("model_type") not in _PLAIN_FAMILIES
        if config.get("num_local_experts") or config.get("num_experts"):
            raise ValueError(
                f"model_type={config.get('model_type')!r} has experts: only dense decoders are planned"
            )
        return cls(
            **size,
            key_heads=int(config.get("num_key_value_heads") or size["heads"]),
            head_width=int(config.get("head_dim") or size["width"] // size["heads"]),
            inner=int(config.get("intermediate_size") or config.get("n_inner") or _MLP * size["width"]),
            gated=gated,
            tied=bool(config.get("tie_word_embeddings", config.get("model_type") == "gpt2")),
            positions=int(config.get("n_positions") or 0),
        )

    @classmethod
    def read(cls, path: Path) -> Decoder:
        """Read a `config.json`, or that of a folder. Raises: ValueError if there is none, or it is none of a decoder."""
        file = path / "config.json" if path.is_dir() else path
        try:
            return cls.of(json.loads(file.read_text()))
        except FileNotFoundError:
            raise ValueError(f"{file}: no such file; give a Hugging Face folder or its config.json") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}: no JSON: {error}") from error

    @property
    def block_parameters(self) -> int:
        """Number of weights in the matrices of one block."""
        attention = self.width * self.head_width * (2 * self.heads + 2 * self.key_heads)
        return attention + self.width * self.inner * (3 if self.gated else 2)

    @property
    def outer_parameters(self) -> int:
        """Number of weights outside the blocks: embedding, positions and last layer."""
        tables = 1 if self.tied else 2
        return self.width * (self.vocabulary * tables + self.positions)

    @property
    def parameters(self) -> int:
        """Number of weights; norms and biases, which are few, are left out."""
        return self.layers * self.block_parameters + self.outer_parameters

    def adapters(self, rank: int) -> int:
        """Number of weights in low-rank adapters of all linear layers of the blocks."""
        keys = self.key_heads * self.head_width
        queries = self.heads * self.head_width
        shapes = [(self.width, queries), (self.width, keys), (self.width, keys), (queries, self.width)]
        shapes += [(self.width, self.inner)] * (2 if self.gated else 1) + [(self.inner, self.width)]
        return self.layers * rank * sum(a + b for a, b in shapes)

    def token_flops(self, length: int, *, tensor: int = 1) -> float:
        """Operations of a token's forward pass: two a weight, and attention to half of `length` tokens on average.

        tensor: how many cards split each block; of one of them.
        """
        return self.block_flops(length, tensor=tensor) + 2.0 * self.width * self.vocabulary

    def block_flops(self, length: int, *, tensor: int = 1) -> float:
        """Operations of a token's forward pass through all blocks, which are those that `recompute` makes once more."""
        return 2.0 * self.layers * (self.block_parameters + self.heads * self.head_width * length) / tensor

    def splits_into(self, tensor: int) -> bool:
        """Whether so many cards share the heads and the inner width of each block evenly."""
        return not any(each % tensor for each in (self.heads, self.key_heads, self.inner))

    @property
    def block_width_activations(self) -> int:
        """Numbers of `block_activations` that are as wide as the model: what its two norms keep."""
        return 6 * self.width

    @property
    def block_activations(self) -> int:
        """Numbers that a block keeps of a token for its gradients, where attention keeps no matrix of scores.

        Two norms keep input, scaled and output; attention keeps query, its own keys and values, and its output twice; the MLP
        keeps what each matrix gave, the activation, and the product.
        """
        attention = self.head_width * (3 * self.heads + 2 * self.key_heads)
        return self.block_width_activations + attention + self.inner * (4 if self.gated else 2)


def _size(config: Mapping[str, Any], fields: tuple[str, ...]) -> int:
    value = next((config[field] for field in fields if field in config), None)
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"config.json: {' or '.join(fields)} is {value!r}; want a whole number above 0")
    return value
