"""Measures the gate of answers on a real language model: prompts made worse on purpose, and pairs of equal ones.

The task has a right answer: which city an order came from. The good prompt answers all rows in so many independent runs, sampled at
temperature 1; each of 20 worse prompts answers them once, and is held against every run of the good one. Of an equal pair both sides have
the good prompt's answer to each row, by two runs that are drawn anew for each row and pair: 400 pairs share the answers of a few runs, which
moves their spread and not their mean. What was answered is kept in FILE, so that a run that was ended, or took all its SECONDS, goes on from
there; what there is is judged.

The exit code is 1 if under 95 % of the worse pairs or over 5 % of the equal ones are blocked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Final

import numpy as np

from toque.functions.evaluation.language import AnswerGate, Scorer, judge_answers
from toque.functions.evaluation.language.answering import AskedVersion, ask, fetched, prepare, running_engine
from toque.functions.evaluation.language.evaluation_set import EvaluationRow
from toque.functions.generative import EngineSettings, Prompt, register_generative
from toque.functions.generative.engines import engine_environment
from toque.load.benchmarks.harness import NotPossible, bound, main, say, temporary
from toque.registry import Registry, open_store

EQUAL_PAIRS = 400
MODEL: Final = "orders"
SETTINGS: Final = EngineSettings(context_length=320, slots=8)
GATE: Final = AnswerGate(scorers=(Scorer(kind="exact"), Scorer(kind="length", max_length=30)), min_rows=50)
_CITIES: Final = (
    "Rome", "Paris", "Oslo", "Lima", "Cairo", "Tokyo", "Berlin", "Madrid", "Vienna", "Dublin", "Athens", "Lisbon", "Prague",
    "Warsaw", "Havana", "Nairobi", "Sydney", "Boston", "Denver", "Munich",
)  # fmt: skip
_NAMES: Final = (
    "Ada", "Bob", "Carla", "David", "Emma", "Frank", "Grace", "Henry", "Irene", "Jack", "Karen", "Louis",
)  # fmt: skip
_THINGS: Final = (
    "lamps", "chairs", "books", "tables", "shirts", "clocks", "plates", "knives", "pillows", "bikes",
)  # fmt: skip
_TOLD: Final = "Read the order and answer with the name of the city alone."
_SHOWN: Final = (
    ("Maria", "London", "desks", 4),
    ("Peter", "Geneva", "boots", 7),
    ("Susan", "Milan", "rugs", 2),
)
_FIRST_RUNS, _SEEDS_OF_WORSE = 3, 10_000
GOOD_NAME: Final = "good"
Shown = tuple[str, str, str, int]
Answers = dict[str, list[list[str]]]
"""By prompt, run and row."""


def order(shown: Shown) -> str:
    """Text of an order: who, from which city, what, and how many."""
    name, city, thing, count = shown
    return f"{name} from {city} ordered {count} {thing}. Which city?"


def prompt(answer: str | None = "{city}", told: str | None = _TOLD, **parameters: Any) -> Prompt:
    """Make a prompt for the task of orders. answer: how its examples answer, with {name}, {city}, {thing} and {count} in it; None: without examples."""
    examples = []
    if answer is not None:
        for name, city, thing, count in _SHOWN:
            said = answer.format(name=name, city=city, thing=thing, count=count)
            examples.append({"user": order((name, city, thing, count)), "assistant": said})
    messages = [{"role": "system", "content": told}] if told else []
    sampling = {"temperature": 1.0, "max_tokens": 16, **parameters}
    return Prompt.model_validate({"messages": messages, "examples": examples, "parameters": sampling})


GOOD: Final = prompt()
WORSE: Final[dict[str, Prompt]] = {
    "loses its examples": prompt(None),
    "loses all it was told": prompt(None, None),
    "answers in a sentence": prompt("The city of the order is {city}."),
    "is polite": prompt("Sure! {city}"),
    "explains": prompt("{city}, because {name} comes from there."),
    "writes JSON": prompt('{{"city": "{city}"}}'),
    "writes a list": prompt("- {city}\n- {name}\n- {thing}"),
    "fences its answer": prompt("```\n{city}\n```"),
    "repeats the order": prompt("{name} from {city} ordered {count} {thing}."),
    "gives the name": prompt("{name}", "Read the order and answer with the name of the person alone."),
    "gives the thing": prompt("{thing}", "Read the order and answer with what was ordered."),
    "gives the number": prompt("{count}", "Read the order and answer with the number alone."),
    "gives one city for all": prompt("London"),
    "declines": prompt("I'm sorry, but I can't help with that."),
    "asks back": prompt("Which order do you mean?"),
    "does not know": prompt("unknown"),
    "is cut after a token": prompt("The {city}", max_tokens=1),
    "stops too early": prompt(stop=["o", "a", "e", "i"]),
    "samples too hot": prompt(temperature=5.0, top_k=0, top_p=1.0, min_p=0.0),
    "says nothing": prompt(logit_bias={"2": 100}),
}


def make_rows(count: int) -> list[EvaluationRow]:
    """Make the rows of the evaluation set, each an order and its city."""
    rng = np.random.default_rng(28)
    rows = []
    for number in range(count):
        name, city, thing = (str(rng.choice(each)) for each in (_NAMES, _CITIES, _THINGS))
        text = order((name, city, thing, int(rng.integers(2, 30))))
        rows.append(EvaluationRow(number, [{"role": "user", "content": text}], {}, city))
    return rows


async def fill(
    answers: Answers,
    versions: Mapping[str, AskedVersion],
    rows: Sequence[EvaluationRow],
    runs: int,
    file: Path,
) -> None:
    """Have one engine answer what is not in `answers` yet, a run at a time, and keep each in the file."""
    first = versions[GOOD_NAME]
    async with running_engine(first.spec, engine_environment(os.environ)) as process:
        slots = asyncio.Semaphore(2 * first.settings.slots)
        for name, run in _jobs(versions, runs):
            if run < len(answers.setdefault(name, [])):
                continue
            seed = (run + (0 if name == GOOD_NAME else _SEEDS_OF_WORSE)) * len(rows)
            requests = [prepare(versions[name], row, seed) for row in rows]
            asked = (ask(versions[name], process, slots, request) for request in requests)
            said = await asyncio.gather(*asked)
            answers[name].append([each.text for each in said])
            file.with_suffix(".part").write_text(json.dumps(answers))
            file.with_suffix(".part").replace(file)


def _jobs(names: Iterable[str], runs: int) -> Iterator[tuple[str, int]]:
    """Order what is asked: some runs of the good prompt, the worse ones, and the other runs, so that a part says something."""
    some = min(runs, _FIRST_RUNS)
    yield from ((GOOD_NAME, run) for run in range(some))
    yield from ((name, 0) for name in names if name != GOOD_NAME)
    yield from ((GOOD_NAME, run) for run in range(some, runs))


def blocked(candidate: Sequence[str], champion: Sequence[str], expected: Sequence[str]) -> bool:
    """Whether the gate refuses a candidate; the rows are in a random order by their making."""
    return not all(check.passed for check in judge_answers(GATE, candidate, champion, expected).checks)


def equal_pairs(runs: Sequence[Sequence[str]], count: int) -> Iterator[tuple[list[str], list[str]]]:
    """Make pairs of candidates of one prompt: of each row the answers of two different runs, drawn anew for each row and pair."""
    rng, said = np.random.default_rng(400), np.array(runs, object)  # [RUNS, ROWS]
    every = np.tile(np.arange(len(runs))[:, None], said.shape[1])
    for _ in range(count):
        one, other = np.take_along_axis(said, rng.permuted(every, axis=0)[:2], axis=0)
        yield one.tolist(), other.tolist()


def _versions(
    weights: Path, prompts: Mapping[str, Prompt], folder: Path, threads: int
) -> dict[str, AskedVersion]:
    """Register each prompt as a version, as a user does, and fetch it; all share an engine."""
    registry = Registry(open_store(f"file://{folder}/store"), actor="bench")
    found: dict[str, AskedVersion] = {}
    for name, each in prompts.items():
        kept: dict[str, Any] = {"keep": 1} if found else {"weights": weights, "settings": SETTINGS}
        made = register_generative(registry, MODEL, prompt=each, description=name, **kept)
        found[name] = fetched(registry, made, folder / str(made.version), threads=threads)
    return found


def run(
    weights: Path,
    *,
    rows: int = 200,
    runs: int = 8,
    threads: int = 1,
    seconds: int = 7_200,
    answers: Annotated[Path | None, "file that keeps what was answered"] = None,
) -> None:
    """Have all prompts answer, judge the pairs, and print a line for each kind."""
    evaluation = make_rows(rows)
    with temporary() as folder:
        file = answers or folder / "answers.json"
        said: Answers = json.loads(file.read_bytes()) if file.exists() else {}
        versions = _versions(weights, {GOOD_NAME: GOOD, **WORSE}, folder, threads)
        with contextlib.suppress(TimeoutError):
            asyncio.run(asyncio.wait_for(fill(said, versions, evaluation, runs, file), seconds))
    say(f"{rows * sum(map(len, said.values()))} answers")
    champions = said.pop(GOOD_NAME, [])
    if len(champions) < 2 or not any(said.values()):  # a pair
        raise NotPossible("too little was answered to judge anything: more --seconds, and --answers to go on")
    _judge(
        champions, {name: one[0] for name, one in said.items() if one}, [row.expected for row in evaluation]
    )


def _judge(
    champions: Sequence[Sequence[str]], worse: Mapping[str, Sequence[str]], expected: Sequence[str]
) -> None:
    """Judge all pairs, and print what came of them."""
    say(f"the good prompt: {mean(_right(run, expected) for run in champions):.0%} right")
    shares = {}
    for name, said in worse.items():
        shares[name] = mean(blocked(said, champion, expected) for champion in champions)
        right = f"{_right(said, expected):4.0%} right"
        say(f"{name:24}: {right}, blocked in {shares[name]:.0%} of {len(champions)}")
    alarms = mean(blocked(one, other, expected) for one, other in equal_pairs(champions, EQUAL_PAIRS))
    bound(f"worse prompts blocked, of {len(shares)} kinds", mean(shares.values()), least=0.95)
    bound(f"equal pairs blocked, of {EQUAL_PAIRS}", alarms, most=0.05)


def _right(said: Sequence[str], expected: Sequence[str]) -> float:
    return mean(GATE.scorers[0].score(one, wanted) for one, wanted in zip(said, expected, strict=True))


if __name__ == "__main__":
    main(run, "xllamacpp", "aiohttp")
