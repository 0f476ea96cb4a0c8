"""The demo of a language model: its test of two arms, and, as a proof, the whole of it."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from examples.capitals.demo import CAPITALS, Answer, ab_test, evaluation_rows
from tests.language_model import language_model_weights

ROOT = Path(__file__).parents[2]


@dataclass
class FakeDoor:
    """Answers rightly with a chance of each arm's own."""

    right: dict[str, float]
    rng: np.random.Generator

    def ask(self, model: str, country: str, *, way: int = 0, unit: str | None = None) -> Answer:  # noqa: ARG002 - the door takes them
        arm = str(self.rng.choice(list(self.right)))
        return Answer(arm, 1, "", float(self.rng.random() < self.right[arm]))


def test_each_country_has_a_question_and_a_capital():
    rows = evaluation_rows().to_pylist()
    assert len(rows) == 70
    assert len(CAPITALS) == len(set(CAPITALS.values())) == 105
    assert rows[0] == {"prompt": "What is the capital of France?", "expected": "Paris"}


def test_a_better_arm_is_proven_and_an_equal_one_is_not():
    rng = np.random.default_rng(4)
    better = ab_test(FakeDoor({"champion": 0.05, "new": 0.5}, rng), "m", "new", [*CAPITALS])
    assert better.proven
    assert 60 <= better.asked <= 150
    equal = [
        ab_test(FakeDoor({"champion": 0.3, "new": 0.3}, rng), "m", "new", [*CAPITALS]).proven
        for _ in range(10)
    ]
    assert (
        sum(equal) <= 2
    )  # each with a chance of 0.05: a third comes in 1 of 90 runs, and never with this seed


@pytest.mark.proof
def test_the_demo_promotes_the_better_prompt_and_blocks_the_worse(tmp_path: Path):
    language_model_weights()
    line = [sys.executable, "-m", "examples.capitals", "--home", str(tmp_path)]
    found = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1_800)
    assert found.returncode == 0, found.stderr[-2_000:]
    report = (tmp_path / "capitals" / "report.md").read_text()
    for said in (
        "capitals@2 promoted",
        "capitals@3 is blocked",
        "not promoted",
        "capitals-adapted@2",
        "served side by side",
    ):
        assert said in report
