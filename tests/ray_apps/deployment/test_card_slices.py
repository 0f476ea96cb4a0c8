"""What a node whose cards are cut into slices is started with, by what its driver tells."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray._private.label_utils import parse_node_labels_string

from tests.functions.runtime.cards.fake_driver import fake_driver
from toque.clusters.profile import Profile
from toque.ray_apps.deployment.node import WHOLE_CARDS, CardSlices, NodeStart, ray_start

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no compiler here for the library")
PROGRAM = """
import json, os, sys
from dataclasses import asdict
from toque.ray_apps.deployment.node import card_slices
from toque.ray_apps.deployment.errors import DeploymentError
try:
    print(json.dumps(asdict(card_slices(os.environ.get("CUDA_VISIBLE_DEVICES")))))
except DeploymentError as error:
    print(json.dumps(str(error)))
"""


def told(driver: dict[str, str], visible: str | None = None) -> Any:
    given = os.environ | driver | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=given, check=True, capture_output=True)
    return json.loads(done.stdout)


@needs_compiler
def test_a_machine_whose_cards_are_cut_alike_offers_every_slice(tmp_path: Path) -> None:
    assert told(fake_driver(tmp_path, cards=2, slices="3g.40gb,3g.40gb")) == {
        "labels": {"ray.io/accelerator-type": "H100-3g.40gb", "toque/slices": "yes"},
        "environment": {"CUDA_VISIBLE_DEVICES": "MIG-fake-0-0,MIG-fake-0-1,MIG-fake-1-0,MIG-fake-1-1"},
        "options": {"num-gpus": 4},
    }


@needs_compiler
def test_of_several_kinds_those_that_are_visible_count_and_others_are_refused(tmp_path: Path) -> None:
    driver = fake_driver(tmp_path, cards=1, slices="1g.10gb,3g.40gb")
    assert told(driver).startswith(
        "this machine's cards are cut into 1g.10gb, 3g.40gb: name those of one kind in CUDA_VISIBLE_DEVICES"
    )
    chosen = told(driver, "MIG-fake-0-1")
    assert chosen["labels"]["ray.io/accelerator-type"] == "H100-3g.40gb"
    assert chosen["environment"] == {"CUDA_VISIBLE_DEVICES": "MIG-fake-0-1"}
    assert chosen["options"] == {"num-gpus": 1}


@needs_compiler
def test_whole_cards_and_a_node_without_any_change_nothing(tmp_path: Path) -> None:
    nothing = {"labels": {}, "environment": {}, "options": {}}
    assert told(fake_driver(tmp_path, cards=2)) == nothing
    assert told(fake_driver(tmp_path, cards=1, slices="1g.10gb"), "") == nothing


def test_the_node_has_the_labels_beside_that_of_its_type() -> None:
    cut = CardSlices({"ray.io/accelerator-type": "H100-1g.10gb", "toque/slices": "yes"}, {}, {"num-gpus": 7})
    for slices, more in ((WHOLE_CARDS, {}), (cut, dict(cut.labels))):
        command = ray_start(
            NodeStart("10.0.0.10", "gpu"), Profile(), {"RAY_NODE_TYPE_NAME": "other"}, slices=slices
        )
        (labels,) = (each.partition("=")[2] for each in command if each.startswith("--labels="))
        assert parse_node_labels_string(labels) == {"ray.io/node-group": "gpu"} | more
        assert ("--num-gpus=7" in command) == bool(more)
