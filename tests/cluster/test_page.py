"""docs/cluster.md is followed word by word: a cluster by hand, and from there to the first prediction."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.cluster import PREFIX, Cluster
from tests.cluster.lab import CODE, Lab
from tests.docs.pages import Block, Page

pytestmark = [pytest.mark.cluster, pytest.mark.proof, pytest.mark.timeout(900)]

PAGE = Page(CODE / "docs" / "cluster.md")


class Pooled(Cluster):
    """A cluster whose profile has a pool and no project, as that page supposes."""

    def profile(self, prefix: str = PREFIX) -> str:
        """The deployment profile of every node."""
        content = yaml.safe_load(super().profile(prefix))
        del content["project"]
        return yaml.safe_dump(content | {"placement": {"pool": 1}})


@pytest.fixture
def own_lab(_possible: None, tmp_path: Path) -> Iterator[Lab]:
    made = Lab.up(tmp_path)
    yield made
    made.down()


def _block(language: str, *, has: str) -> Block:
    (found,) = [each for each in PAGE.blocks if each.language == language and has in each.text]
    return found


def test_from_machines_to_the_first_prediction(own_lab: Lab) -> None:
    by_hand = [
        line.split()[1:3] for line in _block("bash", has="toque node start --head\n").text.splitlines()
    ]
    assert by_hand == [["node", "start"], ["node", "start"], ["deploy"]]
    made = Pooled.nodes(own_lab, workers=1)  # the first two lines
    made.lab.run("head", "toque", "deploy")

    head = own_lab.disk("head")
    (head / "first").mkdir()
    (head / "first" / "total.py").write_text(_block("python", has="register_total").text)
    (head / "secrets").mkdir()
    (head / "secrets" / "token").write_text((head / "home" / ".toque" / "token").read_text())
    lines = _block("bash", has="toque predict total").text
    said = own_lab.run("head", "bash", "-ec", f"cd ~/..; {lines}")
    answer = json.loads(said[said.rindex("\n{") :])
    assert answer["outputs"][0]["data"] == [6.0]
