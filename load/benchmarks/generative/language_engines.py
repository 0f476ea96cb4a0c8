"""Benchmark of engines for language models on this machine: tokens a second of llama.cpp and of transformers, for one and eight answers.

python -m toque.load.benchmarks.generative.language_engines WEIGHTS.gguf [--rounds 3] [--tokens 32] [--threads 2]

Both read the same file: llama.cpp as it is, transformers with the weights as float32. They take turns in one process, greedy, on the same prompts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from toque.load.benchmarks.timing import print_machine

_PROMPT = "Once upon a time, in a small town by the sea, there lived an old man. Story"
_ALONE, _TOGETHER = 1, 8


def llama_cpp(weights: Path, threads: int) -> Callable[[int, int], None]:
    """Start llama.cpp, and return what makes answers with it: how many, and of how many tokens."""
    import xllamacpp  # late, as the engine below: each brings its own

    found = xllamacpp.CommonParams()
    found.model.path = str(weights)
    found.n_ctx, found.n_parallel, found.verbosity = 512 * _TOGETHER, _TOGETHER, -1
    found.cpuparams.n_threads = found.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(found)

    def answer(number: int, tokens: int) -> None:
        asked = {"prompt": f"{_PROMPT} {number}.", "max_tokens": tokens, "temperature": 0}
        made = server.handle_completions(
            asked | {"logit_bias": {"2": -100, "0": -100}, "cache_prompt": False}
        )
        if made["usage"]["completion_tokens"] != tokens:
            raise RuntimeError(f"llama.cpp made {made['usage']}, not {tokens} tokens")

    def run(answers: int, tokens: int) -> None:
        with ThreadPoolExecutor(answers) as pool:
            list(pool.map(lambda number: answer(number, tokens), range(answers)))

    return run


def transformers(weights: Path, threads: int) -> Callable[[int, int], None]:
    """Load the weights with transformers, and return what makes answers with it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer  # type: ignore[import-not-found,unused-ignore]

    torch.set_num_threads(threads)
    place: dict[str, Any] = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    tokenizer: Any = AutoTokenizer.from_pretrained(**place)
    model: Any = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)

    def run(answers: int, tokens: int) -> None:
        prompts = [f"{_PROMPT} {number}." for number in range(answers)]
        asked = tokenizer(prompts, return_tensors="pt")
        with torch.inference_mode():
            model.generate(**asked, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False)

    return run


def main() -> None:
    """Measure both engines in turn, and print a line for each."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    print_machine("xllamacpp", "transformers", "torch")
    engines: dict[str, Callable[[int, int], None]] = {}
    for name, begin in (("llama.cpp", llama_cpp), ("transformers", transformers)):
        started = time.perf_counter()
        engines[name] = begin(given.weights, given.threads)
        engines[name](1, 2)
        print(f"{name:13} first tokens after {time.perf_counter() - started:6.1f} s")
        sys.stdout.flush()
    for answers in (_ALONE, _TOGETHER):
        rates: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(given.rounds):
            for name, run in engines.items():
                begun = time.perf_counter()
                run(answers, given.tokens)
                rates[name].append(answers * given.tokens / (time.perf_counter() - begun))
        ours, theirs = (median(found) for found in rates.values())
        for name, found in rates.items():
            print(f"{answers} at once, {name:13} {median(found):8.1f} tokens/s")
        print(f"{answers} at once, llama.cpp over transformers {ours / theirs:.2f}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
