"""`make test-changed` runs what imports a changed module, however far away, and not the whole suite."""

import subprocess
from pathlib import Path

import pytest

from tests.project.changed import affected_tests, changed_files


@pytest.mark.parametrize(
    ("changed", "ran", "not_ran"),
    [
        ("functions/tuning/space.py", "tests/functions/tuning/test_space.py", "tests/registry/journal/test_journal.py"),
        ("registry/lease.py", "tests/functions/runtime/durable/test_intake.py", "tests/kernels/test_encoder.py"),
        ("tests/waiting.py", "tests/clusters/test_haproxy.py", "tests/kernels/test_encoder.py"),
        ("ray_apps/console/templates/function.html", "tests/ray_apps/console/test_browser.py", "tests/kernels/test_encoder.py"),
        ("tests/kernels/test_encoder.py", "tests/kernels/test_encoder.py", "tests/registry/journal/test_journal.py"),
        ("docs/functions.md", "tests/docs/test_pages.py", "tests/kernels/test_encoder.py"),
        # by a name that the room re-exports, while another room takes other names of it
        ("functions/training/recipe/train.py", "tests/functions/training/test_trainers.py", "tests/functions/monitoring/estimates/test_classes.py"),
        # by a name that the room imports late
        ("registry/store/tables/table.py", "tests/registry/store/tables/test_tables.py", "tests/functions/stats/test_moments.py"),
    ],
)  # fmt: skip
def test_a_change_runs_the_tests_that_depend_on_it_alone(changed: str, ran: str, not_ran: str) -> None:
    found = affected_tests([changed])
    assert ran in found
    assert not_ran not in found


def test_a_change_of_what_every_test_needs_runs_all() -> None:
    found = affected_tests(["pyproject.toml"])
    assert {"tests/kernels/test_encoder.py", "tests/docs/test_pages.py"} <= {*found}
    assert affected_tests([]) == []


def test_what_is_committed_and_what_is_not_counts_as_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> None:
        subprocess.run(
            ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True
        )

    git("init", "--quiet", "--initial-branch=main")
    for branch, name in [("main", "before.py"), ("work", "committed.py")]:
        git("checkout", "--quiet", "-B", branch)
        (tmp_path / name).write_text("")
        git("add", ".")
        git("commit", "--quiet", "--message", name)
    (tmp_path / "new.py").write_text("")
    (tmp_path / "before.py").write_text("changed = 1")
    monkeypatch.setattr("tests.project.changed.ROOT", tmp_path)
    assert changed_files("main") == {"committed.py", "new.py", "before.py"}
