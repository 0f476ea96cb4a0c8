"""A language model that is served, its prompt judged, A/B-tested and promoted, a worse one blocked, and a fine-tune beside it.

python -m examples.capitals    (or `make demo-llm`; the report is .toque/capitals/report.md)

No outcome is scripted: the gate and the test decide on what SmolLM2-135M answers.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from examples.capitals.asking import Door, Tally, ab_test
from examples.capitals.data import CAPITALS, evaluation_rows, judged_countries
from examples.capitals.steps import EVALUATION, GOOD, PLAIN, POLICY, WORSE, weights
from examples.capitals.tuning import served_fine_tune, tuned
from toque.functions.evaluation import GateResult
from toque.functions.evaluation.language.jobs import evaluate_answers
from toque.functions.generative import EngineSettings, difference, register_generative
from toque.functions.runtime.context import Context, use_context
from toque.registry import Access, Refused, Registry, Table, TableSnapshot, open_store

__all__ = ["main"]

MODEL, CHALLENGER = "capitals", "challenger"
ADAPTED, ADAPTER = "capitals-adapted", "adapter"
_ASKED = 20
"""Questions of the evaluation set that the fine-tune and its base are both asked."""


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
