"""What the driver tells: energy of cards, of fractions and of slices, and how cards are cut; each in a process that loads the library."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.functions.runtime.cards.fake_driver import WATTS, fake_driver
from toque.functions.runtime.cards import devices, energy_reader

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no compiler here for the library")
HELD_S = 0.5
METER = f"""
import json, time
from toque.functions.runtime.receipt import meter
read = meter(num_gpus=GPUS)
time.sleep({HELD_S})  # whose joules are counted
print(read().model_dump_json())
"""
DEVICES = """
import json
from dataclasses import asdict
from toque.functions.runtime.cards import devices
print(json.dumps([asdict(each) for each in devices()]))
"""


def told(program: str, driver: dict[str, str], visible: str = "") -> Any:
    given = os.environ | driver | ({"CUDA_VISIBLE_DEVICES": visible} if visible else {})
    done = subprocess.run([sys.executable, "-c", program], env=given, check=True, capture_output=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("visible", "gpus", "cards"),
    [
        ("0", 1, 1.0),
        ("0,1", 2, 2.0),
        ("GPU-fake-1", 1, 1.0),
        ("1", 0.25, 0.25),
        ("MIG-fake-0-1", 1, 3 / 7),
        ("MIG-fake-1-0", 0.5, 1 / 14),
    ],
)
def test_a_receipt_has_the_joules_of_the_cards_or_parts_that_were_held(
    tmp_path: Path, visible: str, gpus: float, cards: float
) -> None:
    sliced = "1g.10gb,3g.40gb" if visible.startswith("MIG") else ""
    usage = told(METER.replace("GPUS", str(gpus)), fake_driver(tmp_path, cards=2, slices=sliced), visible)
    assert usage["energy_j"] == pytest.approx(WATTS * usage["run_s"] * cards, rel=0.05, abs=0.2)
    assert usage["run_s"] >= HELD_S


@pytest.mark.parametrize(
    ("visible", "silent"), [("0", "yes"), ("7", ""), ("GPU-gone", ""), ("", "")]
)  # the last: nobody has said which cards are this process's
def test_energy_that_the_driver_does_not_tell_is_left_out(tmp_path: Path, visible: str, silent: str) -> None:
    usage = told(METER.replace("GPUS", "1"), fake_driver(tmp_path, cards=2, silent=silent), visible)
    assert usage["energy_j"] is None
    assert usage["gpu_s"] >= HELD_S


def test_a_run_without_cards_has_no_energy(tmp_path: Path) -> None:
    assert told(METER.replace("GPUS", "0"), fake_driver(tmp_path, cards=2), "0")["energy_j"] is None


def test_cards_and_slices_of_a_machine_are_listed(tmp_path: Path) -> None:
    assert told(DEVICES, fake_driver(tmp_path, cards=2)) == [
        {"uuid": f"GPU-fake-{number}", "profile": None} for number in range(2)
    ]
    cut = told(DEVICES, fake_driver(tmp_path, cards=1, slices="1g.10gb,3g.40gb"))
    assert cut == [
        {"uuid": "MIG-fake-0-0", "profile": "1g.10gb"},
        {"uuid": "MIG-fake-0-1", "profile": "3g.40gb"},
    ]


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a driver")
def test_without_a_driver_nothing_is_told() -> None:
    assert devices() == []
    assert energy_reader(["0"])() is None
