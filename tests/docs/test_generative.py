"""The commands of docs/generative.md, with a small file in place of weights: no engine is asked here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.docs.commands import commands_of
from tests.docs.conftest import AskedPlatform
from tests.docs.pages import ROOT, Page
from toque.functions.generative import CHAT, PROMPT, WEIGHTS, Prompt, register_generative
from toque.ray_apps.cli import main

pytestmark = pytest.mark.slow
PAGE = Page(ROOT / "docs" / "generative.md")


def test_the_page_s_commands_register_weights_and_prompts(
    asked: AskedPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights.gguf").write_bytes(b"GGUF and so on")
    Path("prompt.yaml").write_text(next(each.text for each in PAGE.blocks if each.language == "yaml"))
    commands = [
        words[1:]
        for block in PAGE.blocks
        if block.language == "bash"
        for words in commands_of(block)
        if words[0] == "toque" and words[1] in {"models", "prompts"}
    ]
    assert len(commands) == 5
    for words in commands:
        assert main(words) == 0, f"toque {' '.join(words)}: {capsys.readouterr().err}"
    printed = capsys.readouterr().out
    assert "support@2: prompt on version 1" in printed
    assert "+You answer customers of {{ shop }} in at most {{ words }} words." in printed
    first, second = asked.registry.list_versions("support")
    assert first.signature == second.signature == CHAT
    assert first.files[WEIGHTS] == second.files[WEIGHTS]
    folder = asked.registry.download("support", 2, tmp_path / "out", paths=[PROMPT])
    assert json.loads((folder / PROMPT).read_text())["parameters"]["max_tokens"] == 80


def test_the_commands_that_score_live_answers_run(
    asked: AskedPlatform, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights.gguf"
    weights.write_bytes(b"GGUF and so on")
    register_generative(asked.registry, "support", weights=weights)
    register_generative(asked.registry, "support", prompt=Prompt(parameters={"temperature": 0}), keep=1)
    asked.registry.promote("support", 1)
    page = Page(ROOT / "docs" / "live-answers.md")
    commands = [words for block in page.blocks if block.language == "bash" for words in commands_of(block)]
    assert [words[1] for words in commands] == ["run", "run", "monitor", "rollout"]
    for _, *words in commands:
        assert main(words) == 0, f"toque {' '.join(words)}: {capsys.readouterr().err}"
    printed = capsys.readouterr()
    assert '"scores": 0' in printed.out
    assert "no answer of support is scored" in printed.err


def test_the_page_s_python_registers_adapters_and_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("base.gguf", "lora.gguf"):
        Path(name).write_bytes(b"GGUF" + name.encode())
    (block,) = (
        each for each in PAGE.blocks if each.language == "python" and "register_generative" in each.text
    )
    names: dict[str, object] = {}
    text = block.text.replace("file:///srv/toque", f"file://{tmp_path}/store").replace('"champion"', "2")
    exec(compile(text, PAGE.name, "exec"), names)  # noqa: S102  # the page's own code
    found = names["registry"].list_versions("support")  # type: ignore[attr-defined]
    assert [sorted(each.files) for each in found][-1] == sorted(
        ["weights.gguf", "adapter.gguf", "engine.json", "prompt.json"]
    )


def test_each_fault_of_the_page_names_a_test_that_there_is() -> None:
    """Rows that say `the same` have that of the row before."""
    files = [file.read_text() for file in (ROOT / "tests").rglob("test_*.py")]
    defined = {
        name for text in files for name in re.findall(r"^(?:async )?def (test_\w+)", text, re.MULTILINE)
    }
    rows = PAGE.text.split("## Faults")[1].split("\n\n")[1].splitlines()[2:]
    assert len(rows) > 5
    for row in rows:
        says = row.rstrip("| ").rpartition(" | ")[2]
        named = re.findall(r"`(test_\w+)`", says)
        assert named or says.startswith("the same"), row
        assert {*named} <= defined, row
