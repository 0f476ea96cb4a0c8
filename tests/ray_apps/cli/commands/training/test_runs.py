"""Runs and files from the command line, against a platform on a real port."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from toque.ray_apps.cli import main
from toque.ray_apps.cli import transfer as files
from toque.ray_apps.cli.transfer import transfer_bar
from toque.registry import Registry


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def runs(platform: Any) -> list[str]:
    """Two runs that differ in one parameter and one metric."""
    registry: Registry = platform.registry
    ids = []
    for rate, loss in ((0.1, 0.5), (0.01, 0.25)):
        with registry.start_run("late", name=f"rate {rate}", params={"rate": rate, "layers": 2}) as started:
            started.log_metrics({"loss": loss, "auc": 0.75}, step=1)
            started.log_metrics({"loss": loss / 2, "ece": float("nan")}, step=2)
        ids.append(started.id)
    return ids


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_runs_are_listed_searched_and_shown(platform: Any, runs: list[str], capsys: Any):
    assert "late" in run(capsys, "experiments")[1]
    code, out, _ = run(capsys, "runs", "list", "late", "--order", "metrics.loss ASC")
    assert (code, [line[0] for line in lines(out)]) == (0, ["run", runs[1], runs[0]])
    assert "loss=0.125" in out
    code, out, _ = run(capsys, "runs", "list", "late", "--where", "params.rate = '0.1'")
    assert [line[0] for line in lines(out)[1:]] == [runs[0]]
    shown = json.loads(run(capsys, "runs", "show", runs[0], "--json")[1])
    assert (shown["params"], shown["status"], shown["actor"]) == (
        {"rate": "0.1", "layers": "2"},
        "FINISHED",
        "trainer",
    )
    assert run(capsys, "runs", "list", "late", "--where", "loss ~ 1")[0] == 2


def test_runs_are_compared_in_what_differs(platform: Any, runs: list[str], capsys: Any):
    code, out, _ = run(capsys, "runs", "compare", *runs)
    assert code == 0
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in out.splitlines()[1:]}
    assert lines(out)[0] == runs
    assert set(rows) == {"name", "status", "started", "params.rate", "metrics.loss"}
    assert (rows["params.rate"], rows["metrics.loss"]) == (["0.1", "0.01"], ["0.25", "0.125"])
    assert "no parameter and no metric differs" in run(capsys, "runs", "compare", runs[0], runs[0])[2]
    code, _, err = run(capsys, "runs", "compare", runs[0], runs[1][:-1])
    assert (code, f"did you mean '{runs[1]}'?" in err) == (1, True)


def test_a_metric_of_runs_is_plotted(platform: Any, runs: list[str], tmp_path: Path, capsys: Any):
    page = tmp_path / "loss.html"
    assert run(capsys, "runs", "plot", "loss", *runs, "--save", str(page))[0] == 0
    assert all(each in page.read_text() for each in runs)
    code, _, err = run(capsys, "runs", "plot", "lose", *runs)
    assert (code, "did you mean 'loss'?" in err) == (1, True)


def test_files_go_up_with_a_run_and_come_back(
    platform: Any, runs: list[str], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    source = tmp_path / "source"
    (source / "a").mkdir(parents=True)
    contents = {"a/big 1.bin": b"x" * (3 << 20), "empty": b"", "c.txt": b"c"}
    for path, content in contents.items():
        (source / path).write_bytes(content)
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(files, "transfer_bar", lambda *args: transfer_bar(*args, console=terminal))
    assert run(capsys, "runs", "upload", runs[0], str(source), "--to", "out")[0] == 0
    assert "3.1/3.1 MB" in screen.getvalue()
    assert json.loads(run(capsys, "runs", "show", runs[0], "--json")[1])["files"] == {
        f"out/{path}": len(content) for path, content in contents.items()
    }
    target = tmp_path / "target"
    assert run(capsys, "runs", "download", runs[0], "--to", str(target))[1] == f"3 files in {target}\n"
    assert {path: (target / "out" / path).read_bytes() for path in contents} == contents
    assert run(capsys, "runs", "download", runs[0], "out/a", "--to", str(tmp_path / "part"))[0] == 0
    assert [file.name for file in (tmp_path / "part").rglob("*") if file.is_file()] == ["big 1.bin"]
    assert "there is no file 'none' of run" in run(capsys, "runs", "download", runs[0], "none")[2]
    assert "neither a folder nor a file" in run(capsys, "runs", "upload", runs[0], str(tmp_path / "none"))[2]


def test_a_version_is_registered_and_comes_back(platform: Any, tmp_path: Path, capsys: Any):
    source = tmp_path / "source"
    (source / "notes").mkdir(parents=True)
    (source / "weights").write_bytes(b"w" * 100)
    (source / "notes" / "why.txt").write_text("because")
    code, out, err = run(capsys, "models", "register", "new", str(source), "--tag", "team=ops")
    assert (code, out) == (0, "new@1: 2 files, 107 bytes\n"), err
    version = platform.registry.get_version("new", 1)
    assert (version.author, version.tags["team"]) == ("ada", "ops")
    assert platform.registry.get_record(version.lineage.run).status == "FINISHED"
    platform.registry.set_alias("new", "champion", 1)
    target = tmp_path / "target"
    assert run(capsys, "models", "download", "new", "champion", "--to", str(target))[0] == 0
    assert (target / "notes" / "why.txt").read_text() == "because"


def test_code_is_registered_only_when_it_is_accepted_by_name(platform: Any, tmp_path: Path, capsys: Any):
    (tmp_path / "model.pkl").write_bytes(b"\x80\x04.")
    asked = ("models", "register", "new", str(tmp_path / "model.pkl"))
    code, _, err = run(capsys, *asked)
    assert (code, "or accept it: --allow-code model.pkl\n" in err) == (1, True), err
    assert run(capsys, *asked, "--allow-code", "model.pkl")[0] == 0
    assert platform.registry.get_version("new", 1).code_files == ("model.pkl",)


def test_what_was_changed_in_the_store_is_refused_and_leaves_nothing(
    platform: Any, model: str, tmp_path: Path, capsys: Any
):
    (key,) = platform.registry.store.list("models/late/blobs/")
    platform.registry.store.put(key, b"2")
    target = tmp_path / "target"
    code, _, err = run(capsys, "models", "download", model, "1", "--to", str(target))
    assert (code, "was changed" in err) == (1, True), err
    assert [file for file in target.rglob("*") if file.is_file()] == []
