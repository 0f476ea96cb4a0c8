"""Benchmark of the Triton kernels: run `python -m load.benchmarks.training.kernels`.

Baselines, in the same process: for the histogram a search and a bincount (NumPy on the CPU, torch on a GPU); for
the hashes one call of xxhash a string.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import xxhash

from kernels import hash_strings, histogram
from kernels.histogram_cases import BENCHMARKS, Case
from kernels.histogram_triton import histogram_reference, histogram_triton
from load.benchmarks.timing import Timing, print_machine, timed


def main() -> None:
    """Run every case and print one line for each."""
    print_machine("numpy", "torch", "triton", "pyarrow", "xxhash")
    print(f"{'p20 / p50 / p80':>42}")
    for case in BENCHMARKS:
        _bench_histogram(case)
    for words in (4_000, 300_000):
        _bench_hashes(rows=300_000, words=words)


def _bench_histogram(case: Case) -> None:
    """Compare one case on the CPU and, where there is one, on the GPU."""
    values, edges = case.arrays()
    baseline = timed(lambda: _searched(values, edges), repeats=5)
    _line(f"search + bincount, NumPy  {case}", baseline, baseline)
    _line(f"histogram on the CPU      {case}", timed(lambda: histogram(values, edges), repeats=5), baseline)
    if torch.cuda.is_available():
        on_gpu = [torch.from_numpy(array).cuda() for array in (values, edges)]
        wait = torch.cuda.synchronize
        reference = timed(lambda: histogram_reference(*on_gpu), settle=wait)
        _line(f"torch on {torch.cuda.get_device_name()}  {case}", reference, reference)
        _line(f"Triton, same card  {case}", timed(lambda: histogram_triton(*on_gpu), settle=wait), reference)


def _searched(
    values: npt.NDArray[np.floating], edges: npt.NDArray[np.float32]
) -> list[npt.NDArray[np.int64]]:
    """Count by a binary search for each value, as numpy.histogram does."""
    columns = zip(values.T, edges, strict=True)
    return [np.bincount(np.searchsorted(row[1:-1], column, side="right")) for column, row in columns]


def _bench_hashes(*, rows: int, words: int) -> None:
    """Hash a column of so many rows with so many distinct words."""
    values = [f"N{n}" for n in np.random.default_rng(0).integers(words, size=rows)]
    baseline = timed(lambda: [xxhash.xxh64_intdigest(value.encode()) for value in values], repeats=5)
    shape = f"{rows} rows, {words} words"
    _line(f"xxhash a string  {shape}", baseline, baseline)
    _line(f"list             {shape}", timed(lambda: hash_strings(values), repeats=5), baseline)
    column = pa.array(values)
    _line(f"Arrow            {shape}", timed(lambda: hash_strings(column), repeats=5), baseline)


def _line(what: str, timing: Timing, baseline: Timing) -> None:
    print(f"{timing}  {baseline.p50_s / timing.p50_s:6.2f}x  {what}", flush=True)


if __name__ == "__main__":
    main()
