"""The histogram of `kernels.histogram` as a Triton kernel, beside its reference in torch.

A program takes one column, a run of rows and a block of bins. It keeps one counter for each pair of lane and
bin in registers, adds "value reaches floor" to it tile by tile, and sums over lanes once at the end: no shared
memory, and one atomic a bin and program instead of one a value, so a column that is constant (all values in one
bin) costs what any other costs.
"""

import torch
import triton
import triton.language as tl

from kernels.histogram_checks import check_histogram

_ROWS = 64  # lanes of a tile
_STEPS = 64  # tiles of a program
_MAX_BINS = 64  # bins of a program: 64 x 64 counters are 32 registers a thread at 4 warps


def histogram_triton(values: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Count as `kernels.histogram.histogram` does, on the device of the values.

    values: [rows, columns] on a CUDA device, or on the CPU where TRITON_INTERPRET=1 was set at import.
    edges: [columns, bins + 1]
    Returns: int64 [columns, bins + 1], the last one the nulls.
    Raises: ValueError if the shapes disagree or an edge is NaN or out of order.
    """
    check_histogram(values, edges)
    values = _as_float(values)
    rows, columns = values.shape
    floors = edges[:, :-1].to(device=values.device, dtype=values.dtype).contiguous()
    floors[:, 0] = -torch.inf
    bins = floors.shape[1]
    reaching = torch.zeros((columns, bins), dtype=torch.int64, device=values.device)
    block = min(_MAX_BINS, triton.next_power_of_2(bins))
    if rows and columns:
        grid = (columns, triton.cdiv(rows, _ROWS * _STEPS), triton.cdiv(bins, block))
        _count_reaching[grid](
            values, floors, reaching, rows, bins, values.stride(0), values.stride(1), _ROWS, _STEPS, block
        )
    return _bins_of(reaching, rows)


def histogram_reference(values: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Count with a search and a bincount: slower, and simple to verify.

    values: [rows, columns]; edges: [columns, bins + 1]
    Raises: ValueError if the shapes disagree or an edge is NaN or out of order.
    """
    check_histogram(values, edges)
    values = _as_float(values)
    inner = edges[:, 1:-1].to(device=values.device, dtype=values.dtype).contiguous()
    bins = edges.shape[1] - 1
    columns = values.T.contiguous()  # [columns, rows]
    bin_index = torch.searchsorted(inner, columns, right=True).masked_fill(columns.isnan(), bins)
    return torch.stack([torch.bincount(row, minlength=bins + 1) for row in bin_index])


def _as_float(values: torch.Tensor) -> torch.Tensor:
    """Convert half precision to float32, and integers and booleans to float64."""
    if values.dtype in (torch.float32, torch.float64):
        return values
    return values.to(torch.float32 if values.dtype.is_floating_point else torch.float64)


def _bins_of(reaching: torch.Tensor, rows: int) -> torch.Tensor:
    """Turn counts of values at or above each floor into counts in each bin, and the nulls."""
    return torch.cat([reaching[:, :-1] - reaching[:, 1:], reaching[:, -1:], rows - reaching[:, :1]], dim=1)


@triton.jit  # type: ignore[untyped-decorator] # Triton ships no types
def _count_reaching(
    values: tl.tensor,
    floors: tl.tensor,
    reaching: tl.tensor,
    rows: tl.tensor,
    bins: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    BINS: tl.constexpr,
) -> None:
    """Add to reaching[column, bin] the number of values of a run of rows at or above floors[column, bin]."""
    column = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1).to(tl.int64) * ROWS * STEPS
    bin_ = tl.program_id(2) * BINS + tl.arange(0, BINS)
    floor = tl.load(floors + column * bins + bin_, mask=bin_ < bins, other=float("inf"))  # [BINS]
    counters = tl.zeros((ROWS, BINS), dtype=tl.int32)
    for step in range(STEPS):
        row = first + step * ROWS + tl.arange(0, ROWS)
        at = values + row * row_stride + column * column_stride
        value = tl.load(at, mask=row < rows, other=float("nan"))  # [ROWS]; NaN reaches nothing
        counters += (value[:, None] >= floor[None, :]).to(tl.int32)  # [ROWS, BINS]
    total = tl.sum(counters, axis=0).to(tl.int64)  # [BINS]
    tl.atomic_add(reaching + column * bins + bin_, total, mask=bin_ < bins)
