"""A language model is served, its prompt judged, A/B-tested and promoted, a worse one blocked; a fine-tune beside it.

python -m examples.capitals    (or `make demo-llm`; the report is .toque/capitals/report.md)

No outcome is scripted: the gate and the test decide on what SmolLM2-135M answers about the capitals of countries.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from examples.capitals.steps import EVALUATION, GOOD, PLAIN, POLICY, WORSE, weights
from examples.gpt.tune import from_gguf
from toque.functions.evaluation import GateResult
from toque.functions.evaluation.language import Scorer
from toque.functions.evaluation.language.jobs import evaluate_answers
from toque.functions.generative import EngineSettings, difference, register_generative
from toque.functions.runtime.context import Context, use_context
from toque.functions.stats.comparison.sequential import asymptotic_cs
from toque.functions.training import Lora, RecipeParams, Trained, fine_tune, serve_fine_tune
from toque.functions.training.llm.job import SIGNATURE
from toque.registry import Access, ModelVersion, Refused, Registry, Table, TableSnapshot, open_store

MODEL, CHALLENGER = "capitals", "challenger"
ADAPTED, ADAPTER = "capitals-adapted", "adapter"
_ASKED = 20
"""Questions of the evaluation set that the fine-tune and its base are both asked."""
BASE, TUNED, ROWS = "capitals-base", "capitals-tuned", "training/capitals"
PARAMS: Final = RecipeParams(lr=2e-3, epochs=2, batch_size=2, recompute=True)
LENGTH: Final = 256
"""Tokens of a row, which holds five conversations."""
_START_S = 120.0  # for an arm to answer
_EXACT = Scorer()
_LEAST_ANSWERS = 60
"""Answers before the first look: the sequence is asymptotic, and fewer shares of right answers are no normal numbers."""


@dataclass
class Demo:
    """One run of the demo: its registry, its evaluation set, and the lines of its report."""

    registry: Registry
    rows: TableSnapshot
    threads: int
    begin_s: float = field(default_factory=time.monotonic)
    lines: list[str] = field(default_factory=list)

    def tell(self, text: str) -> None:
        """Print a line, and keep it for the report."""
        line = f"{time.monotonic() - self.begin_s:4.0f} s  {text}"
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        self.lines.append(f"- {line.strip()}")

    def judge(self, version: int) -> GateResult:
        """Have the gate judge a version, and tell what it found."""
        found = evaluate_answers(MODEL, version, self.rows, threads=self.threads)
        compared = found.intervals.get("exact - champion")
        against = (
            f", champion {found.metrics['champion_exact']:.0%}, difference {compared.low:+.2f} to {compared.high:+.2f}"
            if compared is not None
            else ""
        )
        said = "passes" if found.passed else "is blocked"
        self.tell(f"{MODEL}@{version} {said}: {found.metrics['exact']:.0%} of {found.rows} right{against}")
        return found


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns the exit code, 0 if every step came out as it is meant to be shown."""
    parser = argparse.ArgumentParser(prog="python -m examples.capitals", allow_abbrev=False)
    parser.add_argument(
        "--home", type=Path, default=Path(".toque"), help="folder in which capitals/ is made anew"
    )
    parser.add_argument("--threads", type=int, default=2, help="of each engine")
    given = parser.parse_args(arguments)
    home = given.home / "capitals"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    url = f"file://{home.resolve()}/store"
    store = open_store(url)
    with use_context(Context(store=store, store_url=url, actor="demo")), contextlib.ExitStack() as stack:
        rows = Table(store, EVALUATION).overwrite(evaluation_rows())
        demo = Demo(Registry(store, actor="demo"), rows, given.threads)
        first_version(demo)
        token = Access(store, actor="demo").create_token("demo", "caller")
        door = stack.enter_context(Door.open(url, token, home / "door.log", given.threads))
        better_prompt(demo, door)
        worse_prompt(demo)
        fine_tune_beside(demo, door)
        report = write_report(demo, home)
    demo.tell(f"done; report: {report}")
    return 0


def first_version(demo: Demo) -> None:
    """Register the weights with a plain prompt, make them the champion, and have the policy demand the gate from now on."""
    settings = EngineSettings(context_length=512, slots=4)
    register_generative(demo.registry, MODEL, weights=weights(), settings=settings, prompt=PLAIN)
    demo.registry.promote(MODEL, 1)
    demo.registry.set_policy(MODEL, POLICY)
    demo.tell(f"{MODEL}@1 registered and promoted; a champion must pass the gate of answers from now on")


def better_prompt(demo: Demo, door: Door) -> None:
    """Register a prompt with examples, judge it, test it on half of the traffic, and promote it once it is proven better."""
    version = register_generative(demo.registry, MODEL, prompt=GOOD, keep=1).version
    demo.judge(version)
    demo.registry.set_traffic(MODEL, {CHALLENGER: (version, 0.5)}, reason="A/B test of the prompt")
    door.wait_for(MODEL, CHALLENGER)
    found = ab_test(door, MODEL, CHALLENGER, [*CAPITALS])
    demo.tell(f"A/B test on {found.asked} requests: {found.text}")
    if not found.proven:
        raise SystemExit("the prompt is not proven to be better: nothing is promoted")
    demo.registry.promote(MODEL, version, reason=f"A/B test: {found.text}")
    demo.tell(f"{MODEL}@{version} promoted")


def worse_prompt(demo: Demo) -> None:
    """Register a worse prompt, which the gate blocks and the registry refuses."""
    version = register_generative(demo.registry, MODEL, prompt=WORSE, keep="champion").version
    demo.judge(version)
    try:
        demo.registry.promote(MODEL, version)
    except Refused as refusal:
        demo.tell(f"not promoted: {refusal}")
        return
    raise SystemExit(f"{MODEL}@{version} was promoted, though it is worse")


def fine_tune_beside(demo: Demo, door: Door) -> None:
    """Fine-tune the weights by adapters for a few steps, and serve the adapter beside the base: both have the plain prompt."""
    found = tuned(demo.registry, weights())
    demo.tell(
        f"fine-tuned by LoRA in {found.seconds:.0f} s: {found.metrics['valid_loss']:.2f} nats a token held out"
    )
    settings = EngineSettings(context_length=512, slots=4)
    register_generative(demo.registry, ADAPTED, weights=weights(), settings=settings, prompt=PLAIN)
    demo.registry.promote(ADAPTED, 1)
    version = served_fine_tune(ADAPTED, 1, found).version
    demo.registry.set_traffic(ADAPTED, {ADAPTER: (version, 0.5)}, reason="the fine-tune beside its base")
    door.wait_for(ADAPTED, ADAPTER)
    tally = Tally()
    for country in judged_countries()[:_ASKED]:
        for number in (1, version):
            tally.add(door.ask(f"{ADAPTED}@{number}", country), key=f"{ADAPTED}@{number}")
    demo.tell(f"{ADAPTED}@{version}, an adapter of {ADAPTED}@1, served side by side with it: {tally.text()}")
    base, adapter = (sum(tally.scores[f"{ADAPTED}@{number}"]) for number in (1, version))
    if adapter <= base:
        raise SystemExit("the fine-tune answers no better than its base, on questions that it never learnt")


def write_report(demo: Demo, home: Path) -> Path:
    """Write what happened, the difference of the prompts, and the cards of all versions."""
    versions = [each for model in (MODEL, ADAPTED) for each in demo.registry.list_versions(model)]
    cards = [demo.registry.card(each.model, each.version) for each in versions]
    prompts = f"```diff\n{difference(GOOD, WORSE, names=('the champion', 'the worse prompt'))}\n```"
    parts = [
        "# Capitals: prompts of a language model, judged and tested",
        "\n".join(demo.lines),
        prompts,
        *cards,
    ]
    report = home / "report.md"
    report.write_text("\n\n".join(parts))
    return report


def tuned(registry: Registry, weights: Path) -> Trained:
    """Fine-tune the weights by adapters for a few steps, on questions of which none is in the evaluation set."""
    with tempfile.TemporaryDirectory(prefix="capitals-base-") as place:
        folder = from_gguf(weights, Path(place) / "base")
        registry.create_model(BASE)
        registry.create_version(BASE, folder, signature=SIGNATURE)
    rows = learnt_rows(registry)
    return fine_tune(TUNED, f"{BASE}@1", rows, length=LENGTH, lora=Lora(rank=8, alpha=16.0), params=PARAMS)


def learnt_rows(registry: Registry) -> TableSnapshot:
    """Write the conversations that are learnt: a question, and the city alone as its answer."""
    texts = [
        json.dumps(
            [
                {"role": "user", "content": question(country)},
                {"role": "assistant", "content": CAPITALS[country]},
            ]
        )
        for country in learnt_countries()
    ]
    return Table(registry.store, ROWS).overwrite(pa.table({"messages": texts}))


def served_fine_tune(model: str, base: int, found: Trained) -> ModelVersion:
    """Register the fine-tune as the next version of the served model, as an adapter of its version `base`."""
    assert found.version is not None  # noqa: S101 - it was registered
    return serve_fine_tune(model, base, TUNED, found.version)


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer of the door to one question. score: 1 if it is the city alone."""

    arm: str
    version: int
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Door:
    """A running door of language models, in a process of its own."""

    url: str
    token: str

    @classmethod
    @contextmanager
    def open(cls, store_url: str, token: str, log: Path, threads: int) -> Iterator[Door]:
        """Start a door on a store, and end it afterwards. Raises: RuntimeError if it does not start."""
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        line = [
            sys.executable,
            "-m",
            "toque.ray_apps.generative",
            "--port",
            str(port),
            "--threads",
            str(threads),
        ]
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - our own module
                line, stdout=subprocess.PIPE, stderr=output, env={**os.environ, "TOQUE_STORE": store_url}
            )
        try:
            if process.stdout is None or process.stdout.readline() != b"ready\n":
                raise RuntimeError(f"the door does not start: {log.read_text()[-1_000:]}")
            yield cls(f"http://127.0.0.1:{port}/v1/chat/completions", token)
        finally:
            process.terminate()
            process.wait(60)

    def ask(self, model: str, country: str, *, way: int = 0, unit: str | None = None) -> Answer:
        """Ask for a capital, as a unit of its own. Raises: urllib.error.URLError."""
        asked = {"model": model, "messages": [{"role": "user", "content": question(country, way)}]}
        request = urllib.request.Request(  # noqa: S310 - the door's own address
            self.url,
            json.dumps(asked).encode(),
            {
                "authorization": f"Bearer {self.token}",
                "content-type": "application/json",
                "x-toque-unit": unit or f"{country}-{way}",
            },
        )
        with urllib.request.urlopen(request, timeout=_START_S) as answer:  # noqa: S310 - the same
            text = json.load(answer)["choices"][0]["message"]["content"] or ""
            arm, version = answer.headers["x-toque-arm"], int(answer.headers["x-toque-version"])
        return Answer(arm, version, text, _EXACT.score(text, CAPITALS[country]))

    def wait_for(self, model: str, arm: str) -> None:
        """Wait until an arm answers, which may have to start an engine. Raises: TimeoutError."""
        until = time.monotonic() + _START_S
        for number in range(10_000):
            if self.ask(model, "France", unit=f"wait-{number}").arm == arm:
                return
            if time.monotonic() > until:
                break
            time.sleep(0.2)
        raise TimeoutError(f"arm {arm!r} does not answer within {_START_S:g} s")


@dataclass
class Tally:
    """Scores of the answers so far, by arm or another key."""

    scores: dict[str, list[float]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)

    def add(self, answer: Answer, *, key: str | None = None) -> None:
        """Count an answer for the arm that gave it, or for `key`."""
        self.scores.setdefault(key or answer.arm, []).append(answer.score)
        self.versions[key or answer.arm] = answer.version

    def text(self) -> str:
        """Share of right answers of each arm, in words."""
        return ", ".join(
            f"{arm} (version {self.versions[arm]}) {np.mean(each):.0%} of {len(each)} right"
            for arm, each in sorted(self.scores.items())
        )


@dataclass(frozen=True, slots=True)
class Tested:
    """Outcome of an A/B test. proven: whether the challenger is better, however often one looked."""

    asked: int
    proven: bool
    text: str


def ab_test(door: Door, model: str, challenger: str, countries: Sequence[str]) -> Tested:
    """Ask about each country until the challenger is proven better than the champion, looking after every answer."""
    tally, asked = Tally(), 0
    for way in (1, 2, 3):
        for country in countries:
            tally.add(door.ask(model, country, way=way))
            asked += 1
            control = [score for arm, each in tally.scores.items() if arm != challenger for score in each]
            treated = tally.scores.get(challenger, [])
            if len(control) < 2 or len(treated) < 2:
                continue
            look = asymptotic_cs(control, treated, n_opt=150, burn_in=_LEAST_ANSWERS, alternative="greater")
            if look.reject:
                return Tested(asked, proven=True, text=f"{tally.text()}, always-valid p = {look.p:.2g}")
    return Tested(asked, proven=False, text=f"{tally.text()}, not proven")


_TEXT: Final = """
France Paris|Italy Rome|Spain Madrid|Germany Berlin|Japan Tokyo|Egypt Cairo|Russia Moscow|Greece Athens|Austria Vienna
England London|Peru Lima|China Beijing|Portugal Lisbon|Poland Warsaw|Hungary Budapest|Ireland Dublin|Norway Oslo
Sweden Stockholm|Finland Helsinki|Denmark Copenhagen|Belgium Brussels|Switzerland Bern|Turkey Ankara|Iran Tehran|Iraq Baghdad
Syria Damascus|Lebanon Beirut|Jordan Amman|Israel Jerusalem|Kenya Nairobi|Uganda Kampala|Ghana Accra|Nigeria Abuja
Senegal Dakar|Morocco Rabat|Algeria Algiers|Tunisia Tunis|Libya Tripoli|Sudan Khartoum|Somalia Mogadishu|Angola Luanda
Zambia Lusaka|Zimbabwe Harare|Mozambique Maputo|Madagascar Antananarivo|Cuba Havana|Jamaica Kingston|Bahamas Nassau
Canada Ottawa|Chile Santiago|Bolivia Sucre|Ecuador Quito|Colombia Bogota|Venezuela Caracas|Uruguay Montevideo
Paraguay Asuncion|Nicaragua Managua|Australia Canberra|Fiji Suva|Samoa Apia|Indonesia Jakarta|Philippines Manila
Thailand Bangkok|Vietnam Hanoi|Mongolia Ulaanbaatar|Nepal Kathmandu|Bangladesh Dhaka|Pakistan Islamabad|Afghanistan Kabul
Uzbekistan Tashkent|Kazakhstan Astana|Georgia Tbilisi|Armenia Yerevan|Azerbaijan Baku|Ukraine Kyiv|Belarus Minsk
Lithuania Vilnius|Latvia Riga|Estonia Tallinn|Romania Bucharest|Bulgaria Sofia|Serbia Belgrade|Croatia Zagreb
Slovenia Ljubljana|Slovakia Bratislava|Albania Tirana|Iceland Reykjavik|Malta Valletta|Cyprus Nicosia|Qatar Doha
Oman Muscat|Bahrain Manama|Yemen Sanaa|Ethiopia Addis-Ababa|Rwanda Kigali|Cameroon Yaounde|Mali Bamako|Niger Niamey
Chad N'Djamena|Gabon Libreville|Botswana Gaborone|Namibia Windhoek|Taiwan Taipei|Laos Vientiane|Cambodia Phnom-Penh
"""
CAPITALS: Final[dict[str, str]] = {
    country: city.replace("-", " ")
    for country, city in (each.split() for each in _TEXT.strip().replace("\n", "|").split("|"))
}
_JUDGED: Final = 70  # countries of the evaluation set
_WAYS: Final = (
    "What is the capital of {}?",
    "Which city is the capital of {}?",
    "Name the capital of {}.",
    "{} has which capital?",
)


def question(country: str, way: int = 0) -> str:
    """Ask for a country's capital, in one of several ways."""
    return _WAYS[way % len(_WAYS)].format(country)


def judged_countries() -> list[str]:
    """List the countries of the evaluation set."""
    return list(CAPITALS)[:_JUDGED]


def learnt_countries() -> list[str]:
    """List the countries that a fine-tune learns: those that are not in the evaluation set."""
    return list(CAPITALS)[_JUDGED:]


def evaluation_rows() -> pa.Table:
    """Build the evaluation set: a question about each of the first countries, with the city that is expected."""
    judged = judged_countries()
    return pa.table(
        {"prompt": [question(each) for each in judged], "expected": [CAPITALS[each] for each in judged]}
    )


__all__ = [
    "CAPITALS",
    "Answer",
    "Door",
    "Tally",
    "Tested",
    "ab_test",
    "evaluation_rows",
    "judged_countries",
    "learnt_countries",
    "main",
    "question",
    "served_fine_tune",
    "tuned",
]
