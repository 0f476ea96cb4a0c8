"""Commands of the README and of the registry's page are run, in order, against a platform in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from examples.flights import FEATURES
from tests.docs.commands import commands_of
from tests.docs.conftest import AskedPlatform
from tests.docs.pages import ROOT, Page
from toque.ray_apps.cli import main
from toque.registry.access import signing

pytestmark = pytest.mark.slow
OF_THE_MACHINE = {
    "up",
    "down",
    "status",
    "demo",
}  # they start, end and count processes; `make demo` runs them


def toque_commands(page: str, **placeholders: str) -> list[list[str]]:
    """The words after `toque` in the page's blocks, placeholders replaced."""
    return [
        [placeholders.get(word, word) for word in words[1:]]
        for block in Page(ROOT / page).blocks
        if block.language == "bash"
        for words in commands_of(block)
        if words[0] == "toque" and words[1] not in OF_THE_MACHINE
    ]


def run_all(commands: list[list[str]], capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What each command printed, by its words. Every one must end well and say something."""
    printed = {}
    for words in commands:
        code = main(words)
        out, err = capsys.readouterr()
        assert code == 0, f"toque {' '.join(words)}: {err}"
        assert out + err, f"toque {' '.join(words)} said nothing"
        printed[" ".join(words)] = out + err
    return printed


@pytest.mark.long
def test_the_readme_s_commands_answer(
    asked: AskedPlatform, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked.with_model("flight-delay", tmp_path / "model", versions=2)
    asked.context.features().apply(FEATURES)
    commands = toque_commands("README.md", ID="0")
    assert len(commands) >= 10
    printed = run_all(commands, capsys)
    assert "champion" in printed["models show flight-delay"]
    assert "drain_predictions" in printed["functions"]
    assert "drain_predictions" in printed["invocations list"]


def test_the_registry_s_commands_do_what_the_page_says(
    asked: AskedPlatform, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked.with_model("late", tmp_path / "model", versions=4)
    private = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    Path("key.pem").write_bytes(private)
    Path("public.pem").write_text(signing.public_of(private))
    Path("report").mkdir()
    Path("report/loss.txt").write_text("0.4")
    runs = []
    for rate in ("0.01", "0.02"):
        with asked.registry.start_run("late", params={"lr": rate}) as run:
            run.log_metrics({"log_loss": 0.4}, step=1)
            notes = Path("notes")
            notes.write_text("because")
            run.log_artifact(notes)
        runs.append(run.id)
    commands = toque_commands("docs/registry.md", RUN=runs[0], OTHER=runs[1])
    assert len(commands) >= 20
    run_all(commands, capsys)
    assert Path("loss.html").exists()
    assert Path("here/notes").read_text() == "because"
    assert Path("here/weights.bin").read_bytes() == b"weights"
    assert asked.registry.get_version("late", 5).tags["team"] == "ops"
    assert asked.registry.alias_at("late", "champion", at=asked.registry.history("late")[-1].at) is not None
