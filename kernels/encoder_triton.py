"""The first layer of `toque.kernels.encoder` as Triton kernels, forward and backward.

Forward, a program takes a tile of rows and of hidden values, and goes along the layer's inputs: it makes a tile of codes in
registers and multiplies it by the weights. For the weights' gradient, a program takes a tile of weights and goes along a part
of the rows, making the same codes again; the parts are added in a fixed order, so equal inputs give equal bits. The gradient of
the embedding table is a product and a sum by table row, which torch has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_embedding_backward: Callable[..., Tensor] = torch.ops.aten.embedding_dense_backward.default
_ROWS = 64  # of a tile
_INPUTS = 32  # of a tile
_MAX_HIDDEN = 128  # of a tile
_PART_ROWS = 256  # rows of a part of the weights' gradient, at least
_MAX_PARTS = 32  # of it: each takes as much memory as the weights
_OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}
"""One stage: codes are computed, not copied, and buffers of more stages would not fit into the shared memory of smaller cards."""
_LEAST_DOT = 16  # the smallest side of a product that Triton takes
_TENSOR_CORES_WITH_TF32 = 8  # compute capability


def encode_linear_triton(
    numeric: Tensor,
    missing: Tensor,
    category: Tensor,
    left: Tensor,
    inverse_width: Tensor,
    table: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> Tensor:
    """Compute `toque.kernels.encoder.encode_linear` on a CUDA device, or on the CPU where TRITON_INTERPRET=1 was set at import.

    Under autocast the layer is multiplied in its dtype, as torch does. A category outside the table makes its row NaN.
    Raises: ValueError if shapes disagree or a gradient is wanted for the numbers.
    """
    _check(numeric, missing, category, left, inverse_width, table, weight, bias)
    if torch.is_autocast_enabled(numeric.device.type):
        low = torch.get_autocast_dtype(numeric.device.type)
        weight, bias = weight.to(low), bias.to(low)
    result: Tensor = _EncodeLinear.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        numeric, missing, category, left, inverse_width, table, weight, bias
    )
    return result


class _EncodeLinear(torch.autograd.Function):
    """The layer with its gradients to table, weight and bias."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        inputs = tuple(each.contiguous() for each in inputs)
        ctx.save_for_backward(*inputs[:-1])
        return _forward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs: tuple[Tensor, ...] = ctx.saved_tensors
        category, table, weight = inputs[2], inputs[5], inputs[6]
        gradient = gradient.contiguous()
        wants_table, wants_weight, wants_bias = ctx.needs_input_grad[5:]
        of_table = _table_gradient(gradient, category, table, weight) if wants_table else None
        of_weight = _weight_gradient(gradient, *inputs) if wants_weight else None
        of_bias = gradient.sum(0) if wants_bias else None
        return (None,) * 5 + (of_table, of_weight, of_bias)


def _forward(
    numeric: Tensor,
    missing: Tensor,
    category: Tensor,
    left: Tensor,
    inverse_width: Tensor,
    table: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> Tensor:
    rows, hidden = len(numeric), len(weight)
    result = weight.new_empty(rows, hidden)
    block = _hidden_block(hidden)
    if result.numel():
        _encode[triton.cdiv(rows, _ROWS), triton.cdiv(hidden, block)](
            numeric, missing, category, left, inverse_width, table, weight, bias, result, rows, len(table),
            hidden, *_sizes(left, category, table), *_arithmetic(weight), _ROWS, _INPUTS, block, **_OPTIONS,
        )  # fmt: skip
    return result


def _weight_gradient(
    gradient: Tensor,
    numeric: Tensor,
    missing: Tensor,
    category: Tensor,
    left: Tensor,
    inverse_width: Tensor,
    table: Tensor,
    weight: Tensor,
) -> Tensor:
    """Gradient (hidden, inputs) of the weights from that of the result (rows, hidden), summed over parts of the rows."""
    rows, (hidden, inputs) = len(numeric), weight.shape
    part_rows = max(_PART_ROWS, triton.cdiv(triton.cdiv(rows, _MAX_PARTS), _ROWS) * _ROWS)
    precision, sums = _arithmetic(weight)
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    parts = weight.new_empty(triton.cdiv(rows, part_rows), hidden, inputs, dtype=wide)
    block = _hidden_block(hidden)
    if parts.numel():
        _weigh[triton.cdiv(inputs, _INPUTS), triton.cdiv(hidden, block), len(parts)](
            numeric, missing, category, left, inverse_width, table, gradient, parts, rows, len(table), part_rows // _ROWS,
            hidden, *_sizes(left, category, table), precision, sums, _ROWS, _INPUTS, block, **_OPTIONS,
        )  # fmt: skip
    return parts.sum(0).to(weight.dtype)


def _table_gradient(gradient: Tensor, category: Tensor, table: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the embedding table, by the operator of torch that `embedding` has for it."""
    embedded = category.shape[1] * table.shape[1]
    of_embedded = gradient @ weight[:, weight.shape[1] - embedded :]  # [rows, columns * width]
    found = of_embedded.reshape(*category.shape, table.shape[1]).to(table.dtype)
    return _embedding_backward(found, category, len(table), -1, False)


def _sizes(left: Tensor, category: Tensor, table: Tensor) -> tuple[int, int, int, int]:
    """Numbers of features, of their bins, of categorical columns, and of an embedding's values."""
    return left.shape[0], left.shape[1], category.shape[1], table.shape[1]


def _hidden_block(hidden: int) -> int:
    return max(_LEAST_DOT, min(_MAX_HIDDEN, 1 << (hidden - 1).bit_length()))


def _arithmetic(weight: Tensor) -> tuple[str, Any]:
    """Precision of products and dtype of sums: of float32, TF32 where torch may use it, and three TF32 products otherwise.

    Three products keep float32's precision at tensor cores' speed.
    Source: Ootomo and Yokota, Recovering single precision accuracy from Tensor Cores, 2022.
    """
    if weight.dtype != torch.float32:
        return "ieee", tl.float64 if weight.dtype == torch.float64 else tl.float32
    if not weight.is_cuda or torch.version.hip or not _has_tf32(weight.device):
        return "ieee", tl.float32
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32", tl.float32


def _has_tf32(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device)[0] >= _TENSOR_CORES_WITH_TF32


def _check(
    numeric: Tensor,
    missing: Tensor,
    category: Tensor,
    left: Tensor,
    inverse_width: Tensor,
    table: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> None:
    if numeric.requires_grad or missing.requires_grad:
        raise ValueError("the kernel has no gradient for numbers or flags: use encode_linear_reference")
    features, bins, columns, width = _sizes(left, category, table)
    wanted = {
        "missing": (missing, (len(numeric), features)),
        "numeric": (numeric, (len(numeric), features)),
        "category": (category, (len(numeric), columns)),
        "inverse_width": (inverse_width, (features, bins)),
        "weight": (weight, (len(weight), features * (bins + 2) + columns * width)),
        "bias": (bias, (len(weight),)),
    }
    for name, (tensor, shape) in wanted.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)}, want {shape} for {features} features of {bins} bins and {columns} columns "
                f"of {width} values"
            )


@triton.jit  # type: ignore[untyped-decorator] # Triton ships no types
def _codes(
    numeric: tl.tensor, missing: tl.tensor, category: tl.tensor, left: tl.tensor, inverse_width: tl.tensor, table: tl.tensor,
    row: tl.tensor, input_: tl.tensor, rows: tl.tensor, entries: tl.tensor,
    FEATURES: tl.constexpr, BINS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, SUMS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Make the tile [ROWS, INPUTS] of what the layer multiplies, 0 outside of the rows and inputs."""
    there = (row < rows)[:, None]  # [ROWS, 1]
    at = row.to(tl.int64)[:, None]
    is_code = input_ < FEATURES * BINS  # [INPUTS]
    plain = input_ - FEATURES * BINS
    is_plain = (plain >= 0) & (plain < 2 * FEATURES)
    embedded = plain - 2 * FEATURES
    is_embedded = (embedded >= 0) & (embedded < COLUMNS * WIDTH)
    is_flag = is_plain & (plain >= FEATURES)
    is_number = is_code | (is_plain & (plain < FEATURES))
    feature = tl.where(is_code, input_ // BINS, tl.where(is_flag, plain - FEATURES, plain))
    number = tl.load(numeric + at * FEATURES + feature[None, :], mask=there & is_number[None, :], other=0.0)
    edge = tl.load(left + input_, mask=is_code, other=0.0).to(SUMS)  # [INPUTS]
    steepness = tl.load(inverse_width + input_, mask=is_code, other=0.0).to(SUMS)
    number = number.to(SUMS)
    share = tl.minimum(tl.maximum((number - edge[None, :]) * steepness[None, :], 0.0), 1.0)
    flagged = there & is_flag[None, :]
    flag = tl.load(missing + at * FEATURES + feature[None, :], mask=flagged, other=0.0).to(SUMS)
    looked_up = there & is_embedded[None, :]
    entry = tl.load(category + at * COLUMNS + (embedded // WIDTH)[None, :], mask=looked_up, other=0)
    known = (entry >= 0) & (entry < entries)
    vector = tl.load(table + entry * WIDTH + (embedded % WIDTH)[None, :], mask=looked_up & known, other=0.0)
    vector = tl.where(known, vector.to(SUMS), float("nan"))  # as a number, and not a read of any memory
    code = tl.where(is_code[None, :], share, number)  # [ROWS, INPUTS]
    return tl.where(looked_up, vector, tl.where(flagged, flag, code))


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator] # batches of all sizes share a program
def _encode(
    numeric: tl.tensor, missing: tl.tensor, category: tl.tensor, left: tl.tensor, inverse_width: tl.tensor, table: tl.tensor,
    weight: tl.tensor, bias: tl.tensor, result: tl.tensor, rows: tl.tensor, entries: tl.tensor,
    HIDDEN: tl.constexpr, FEATURES: tl.constexpr, BINS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
    PRECISION: tl.constexpr, SUMS: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_INPUTS: tl.constexpr, TILE_HIDDEN: tl.constexpr,
) -> None:  # fmt: skip
    """Store a tile of result = codes @ weight.T + bias."""
    INPUTS: tl.constexpr = FEATURES * (BINS + 2) + COLUMNS * WIDTH
    row = tl.program_id(0) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    unit = tl.program_id(1) * TILE_HIDDEN + tl.arange(0, TILE_HIDDEN)
    total = tl.zeros((TILE_ROWS, TILE_HIDDEN), dtype=SUMS)
    for first in range(0, INPUTS, TILE_INPUTS):
        input_ = first + tl.arange(0, TILE_INPUTS)
        codes = _codes(
            numeric, missing, category, left, inverse_width, table, row, input_, rows, entries,
            FEATURES, BINS, COLUMNS, WIDTH, SUMS,
        )  # fmt: skip
        inside = (input_ < INPUTS)[:, None] & (unit < HIDDEN)[None, :]
        factor = tl.load(
            weight + unit[None, :] * INPUTS + input_[:, None], mask=inside, other=0.0
        )  # [INPUTS, HIDDEN]
        total = tl.dot(codes.to(factor.dtype), factor, total, input_precision=PRECISION, out_dtype=SUMS)
    total += tl.load(bias + unit, mask=unit < HIDDEN, other=0.0).to(SUMS)[None, :]
    at = result + row.to(tl.int64)[:, None] * HIDDEN + unit[None, :]
    tl.store(at, total.to(result.dtype.element_ty), mask=(row < rows)[:, None] & (unit < HIDDEN)[None, :])


@triton.jit(do_not_specialize=["rows", "steps"])  # type: ignore[untyped-decorator] # as above
def _weigh(
    numeric: tl.tensor, missing: tl.tensor, category: tl.tensor, left: tl.tensor, inverse_width: tl.tensor, table: tl.tensor,
    gradient: tl.tensor, parts: tl.tensor, rows: tl.tensor, entries: tl.tensor, steps: tl.tensor,
    HIDDEN: tl.constexpr, FEATURES: tl.constexpr, BINS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
    PRECISION: tl.constexpr, SUMS: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_INPUTS: tl.constexpr, TILE_HIDDEN: tl.constexpr,
) -> None:  # fmt: skip
    """Store a tile of parts[part] = gradient[rows of the part].T @ codes[rows of the part]."""
    INPUTS: tl.constexpr = FEATURES * (BINS + 2) + COLUMNS * WIDTH
    input_ = tl.program_id(0) * TILE_INPUTS + tl.arange(0, TILE_INPUTS)
    unit = tl.program_id(1) * TILE_HIDDEN + tl.arange(0, TILE_HIDDEN)
    part = tl.program_id(2).to(tl.int64)
    total = tl.zeros((TILE_HIDDEN, TILE_INPUTS), dtype=SUMS)
    for step in range(steps):
        row = (part * steps + step) * TILE_ROWS + tl.arange(0, TILE_ROWS)
        codes = _codes(
            numeric, missing, category, left, inverse_width, table, row, input_, rows, entries,
            FEATURES, BINS, COLUMNS, WIDTH, SUMS,
        )  # fmt: skip
        at = gradient + row.to(tl.int64)[None, :] * HIDDEN + unit[:, None]
        change = tl.load(
            at, mask=(row < rows)[None, :] & (unit < HIDDEN)[:, None], other=0.0
        )  # [HIDDEN, ROWS]
        total = tl.dot(change, codes.to(change.dtype), total, input_precision=PRECISION, out_dtype=SUMS)
    to = parts + part * HIDDEN * INPUTS + unit[:, None] * INPUTS + input_[None, :]
    tl.store(to, total, mask=(unit < HIDDEN)[:, None] & (input_ < INPUTS)[None, :])
