"""`toque plan train` as its user meets it."""

import json

import pytest

from tests.functions.training.planning.test_plan import SMOLLM2
from toque.ray_apps.cli import main

LARGE = SMOLLM2 | {
    "hidden_size": 8192, "intermediate_size": 28_672, "num_attention_heads": 64, "num_hidden_layers": 80,
    "num_key_value_heads": 8,
}  # fmt: skip


@pytest.fixture
def config(tmp_path):
    def write(sizes=SMOLLM2):
        file = tmp_path / "config.json"
        file.write_text(json.dumps(sizes))
        return str(file)

    return write


def test_a_plan_says_memory_time_and_money(config, capsys, monkeypatch):
    monkeypatch.setenv("TOQUE_PRICES", '{"currency": "EUR", "cpu_hour": 0.05, "gpu_hour": 2}')
    asked = ["plan", "train", config(), "--tokens", "2e9", "--card", "l4"]
    assert main([*asked, "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"]
    assert found["cards"] == 1
    assert found["money"] == pytest.approx(2 * found["card_hours"])
    assert found["memory_bytes"] == pytest.approx(sum(found["memory_parts"].values()))
    assert main([*asked, "--run-tokens-s", "9000", "-o", "json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["tokens_s"] == pytest.approx(9_000, rel=0.02)  # the run's own rate


def test_what_cannot_fit_is_refused_with_what_would(config, capsys):
    large = ["plan", "train", config(LARGE), "--tokens", "1e9", "--cards", "8", "--sharding", "replicate"]
    assert main(large) == 1
    said = capsys.readouterr()
    assert "a card needs" in said.err
    assert "this fits and is the fastest" in said.err
    assert 'sharding="shard"' in said.err


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--card", "h1000"], "choose one of h200"),
        (["--recompute"], "chosen for you unless --sharding"),
        (["--run-tokens-s", "1e12"], "above the peak of a h100"),
    ],
)
def test_arguments_that_cannot_be_are_said(config, capsys, given, says):
    assert main(["plan", "train", config(), "--tokens", "1e9", *given]) == 2
    assert says in capsys.readouterr().err
