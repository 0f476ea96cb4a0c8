"""Benchmark of the numeric core, by cases: on a processor, and on a card where there is one.

cpu: the histogram beside a binary search for each value in NumPy, the hashes beside one call of xxhash a string.
card: the encoder's Triton kernels, forward and with gradients, beside torch's operators, eager and through torch.compile, on a CUDA
device. Shares: of the bandwidth that a copy reaches there, for the bytes that the step cannot do without; and of its bound, the
longer of that copy's time and of the matrix products alone, on codes that are ready. Without a device `--cases card` is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import xxhash
from torch import Tensor

from toque.kernels import hash_strings, histogram
from toque.kernels.encoder import encode_linear, encode_linear_reference, piecewise_linear
from toque.kernels.encoder_cases import BENCHMARKS as ENCODERS
from toque.kernels.encoder_cases import Case as Encoder
from toque.kernels.histogram_cases import BENCHMARKS, Case
from toque.load.benchmarks.harness import NotPossible, Timing, line, main, say, timed

_COPIED_BYTES = 1 << 30
_LEAST_SHARE = 0.70
_LEARNT = 3  # the last arguments of the encoder: table, weight and bias


def run(
    *, cases: Annotated[tuple[Literal["cpu", "card"], ...], "left out: cpu, and card where there is one"] = ()
) -> None:
    """Run the cases and print one line for each."""
    card = torch.cuda.is_available()
    if "card" in cases and not card:
        raise NotPossible(f"torch {torch.__version__} finds no CUDA device here")
    if not cases or "cpu" in cases:
        for case in BENCHMARKS:
            _bench_histogram(case)
        for words in (4_000, 300_000):
            _bench_hashes(rows=300_000, words=words)
    if not cases or "card" in cases:
        _bench_encoders() if card else say("encoder on a card: not measured, there is no CUDA device here")


def _bench_histogram(case: Case) -> None:
    values, edges = case.arrays()

    def searched() -> list[npt.NDArray[np.int64]]:
        """Count by a binary search for each value, as numpy.histogram does."""
        columns = zip(values.T, edges, strict=True)
        return [np.bincount(np.searchsorted(row[1:-1], column, side="right")) for column, row in columns]

    base = timed(searched, repeats=5)
    line(f"search + bincount, NumPy  {case}", base, base)
    line(f"histogram                 {case}", timed(lambda: histogram(values, edges), repeats=5), base)


def _bench_hashes(*, rows: int, words: int) -> None:
    """Hash a column of so many rows with so many distinct words."""
    values = [f"N{n}" for n in np.random.default_rng(0).integers(words, size=rows)]
    shape = f"{rows} rows, {words} words"
    column = pa.array(values)
    base = timed(lambda: [xxhash.xxh64_intdigest(value.encode()) for value in values], repeats=5)
    line(f"xxhash a string  {shape}", base, base)
    line(f"list             {shape}", timed(lambda: hash_strings(values), repeats=5), base)
    line(f"Arrow            {shape}", timed(lambda: hash_strings(column), repeats=5), base)


def _bench_encoders() -> None:
    copied = torch.empty(_COPIED_BYTES, dtype=torch.uint8, device="cuda")
    bytes_s = 2 * _COPIED_BYTES / _on_card(copied.clone).p50_s
    del copied
    say(f"{torch.cuda.get_device_name()}: a copy reaches {bytes_s / 1e9:,.0f} GB/s")
    for case in ENCODERS:
        torch.compiler.reset()  # or it would give up after eight shapes
        compiled = torch.compile(encode_linear_reference, dynamic=False)
        ways = {"eager": encode_linear_reference, "torch.compile": compiled, "Triton": encode_linear}
        for learns in (False, True):
            bench_encoder(case, ways, bytes_s, learns=learns, device="cuda")


def bench_encoder(
    case: Encoder, ways: Mapping[str, Callable[..., Tensor]], bytes_s: float, *, learns: bool, device: str
) -> None:
    """Time a case each way, and print the shares of `bytes_s`, the bandwidth, and of the case's bound."""
    tensors = case.tensors(device=device)
    least_s = max(least_bytes(case, learns=learns) / bytes_s, _products(tensors, learns=learns).p50_s)
    change = torch.randn_like(encode_linear_reference(*tensors))
    eager: Timing | None = None
    for name, encode in ways.items():
        step = partial(_learn, encode, tensors, change) if learns else partial(_score, encode, tensors)
        timing = _on_card(step)
        eager = eager or timing
        share, bound = least_bytes(case, learns=learns) / bytes_s / timing.p50_s, least_s / timing.p50_s
        low = f"  (below {_LEAST_SHARE:.0%} of its bound)" * (name == "Triton" and bound < _LEAST_SHARE)
        what = f"{name:<13} {'forward and gradients' if learns else 'forward'}"
        line(f"{what}  {share:.1%} of bandwidth, {bound:.1%} of its bound{low}  {case}", timing, eager)


def least_bytes(case: Encoder, *, learns: bool) -> int:
    """Bytes that a step must move: rows and weights read, the result written; with gradients its own read, and rows again."""
    size = case.dtype.itemsize
    row, result = 2 * case.features * size + case.columns * 8, case.hidden * size
    weights = (case.hidden * (case.inputs + 1) + case.columns * case.entries * case.width) * size
    forward = case.rows * (row + result) + weights
    return 2 * forward + weights if learns else forward


def _products(tensors: tuple[Tensor, ...], *, learns: bool) -> Timing:
    """Time of the layer's matrix products alone, on codes that are ready."""
    numeric, missing, category, left, inverse_width, table, weight, _ = tensors
    embedded = torch.nn.functional.embedding(category, table).flatten(1)
    codes = torch.cat([piecewise_linear(numeric, left, inverse_width), numeric, missing, embedded], dim=1)
    result = codes @ weight.T
    own = weight[:, weight.shape[1] - embedded.shape[1] :]

    def multiply() -> None:
        torch.mm(codes, weight.T)
        if learns:
            torch.mm(result.T, codes)
            torch.mm(result, own)

    return _on_card(multiply)


def _score(encode: Callable[..., Tensor], tensors: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        return encode(*tensors)


def _learn(encode: Callable[..., Tensor], tensors: tuple[Tensor, ...], change: Tensor) -> tuple[Tensor, ...]:
    learnt = [each.requires_grad_() for each in tensors[-_LEARNT:]]
    return torch.autograd.grad(encode(*tensors), learnt, change)


def _on_card(step: Callable[[], object]) -> Timing:
    """Time a step on the card by its own clock, with its cache emptied before each repeat."""
    from triton.testing import do_bench  # late: it looks for a card

    return Timing(*(each / 1e3 for each in do_bench(step, quantiles=[0.2, 0.5, 0.8])))


if __name__ == "__main__":
    main(run, "numpy", "torch", "triton", "pyarrow", "xxhash")
