"""The deployment profile: what a file and the environment say, and which of both counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from toque.clusters.profile import (
    ProfileError,
    apply_profile,
    effective_profile,
    missing_settings,
    read_profile,
    require_settings,
    settings_of,
)

FULL = {
    "cluster": "kitchen",
    "store": {
        "url": "s3://bucket/toque",
        "region": "eu-central-1",
        "kms_key": "alias/toque",
        "sse": "aws:kms",
    },
    "redis": {"url": "rediss://toque:secret@redis:6379/0?ssl_ca_certs=/ca.pem"},
    "project": {"default": "base", "payments": "teams.payments"},
    "workspaces": ["payments", "risk"],
    "models": {"late": {"num_replicas": 3}},
    "prices": {"currency": "EUR", "cpu_hour": 0.05},
    "alert_hosts": [],
    "placement": {"gateway": 3},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "toque.yaml", FULL)


def write(path: Path, content: object) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def shown(environment: dict[str, str]) -> dict[str, tuple[str, str]]:
    return {each.name: (each.value, each.source) for each in settings_of(environment)}


def test_a_variable_takes_precedence_over_the_file_and_the_file_over_the_default(file: Path) -> None:
    found = shown({"TOQUE_PROFILE": str(file), "TOQUE_GATEWAY_REPLICAS": "5"})
    assert found["placement.gateway"] == ("5", "environment")
    assert found["cluster"] == ("kitchen", str(file))
    assert found["ports.http"] == ("8000", "default")
    assert found["project"][0] == "default=base,payments=teams.payments"


def test_what_the_store_needs_becomes_part_of_its_url(file: Path) -> None:
    url = shown({"TOQUE_PROFILE": str(file)})["store.url"][0]
    assert url == "s3://bucket/toque?region=eu-central-1&sse=aws:kms&kms_key=alias/toque"


def test_an_environment_gets_what_it_does_not_have(file: Path) -> None:
    environment = {"TOQUE_PROFILE": str(file), "TOQUE_PROJECT": "mine"}
    apply_profile(environment)
    assert environment["TOQUE_PROJECT"] == "mine"
    assert environment["TOQUE_STORE"].startswith("s3://bucket/toque?")
    assert environment["TOQUE_ALERT_HOSTS"] == ","  # none at all, which differs from not said
    assert "TOQUE_HTTP_PORT" not in environment


def test_a_process_that_starts_anew_follows_a_changed_file(file: Path) -> None:
    environment = {"TOQUE_PROFILE": str(file), "TOQUE_PROJECT": "mine"}
    apply_profile(environment)
    write(file, {**FULL, "cluster": "hall", "project": "other", "prices": None})
    apply_profile(environment)
    assert environment["TOQUE_CLUSTER_NAME"] == "hall"
    assert environment["TOQUE_PROJECT"] == "mine"
    assert "TOQUE_PRICES" not in environment


def test_the_file_is_found_from_another_folder(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    environment = {"TOQUE_PROFILE": file.name}
    apply_profile(environment)
    assert environment["TOQUE_PROFILE"] == str(file)


def test_without_a_profile_nothing_changes() -> None:
    environment = {"TOQUE_STORE": "file:///s"}
    apply_profile(environment)
    assert environment == {"TOQUE_STORE": "file:///s"}


def test_the_whole_profile_is_read_back_with_the_variables(file: Path) -> None:
    environment = {
        "TOQUE_PROFILE": str(file),
        "TOQUE_WORKSPACES": "a, b",
        "TOQUE_MODELS": '{"x": {"num_cpus": 1}}',
        "TOQUE_ON_SERVE_NODES": "0",
    }
    profile = effective_profile(environment)
    assert profile.workspaces == ("a", "b")
    assert profile.models == {"x": {"num_cpus": 1}}
    assert not profile.placement.on_serve_nodes
    assert profile.store.address() == "s3://bucket/toque?region=eu-central-1&sse=aws:kms&kms_key=alias/toque"
    apply_profile(environment)
    assert effective_profile(environment) == profile


def test_a_process_says_what_it_lacks() -> None:
    assert [each.name for each in missing_settings({})] == ["store.url", "redis.url"]
    with pytest.raises(ProfileError, match=r"store.url \(TOQUE_STORE\), redis.url \(TOQUE_REDIS_URL\)"):
        require_settings({})


def test_secrets_are_not_shown(file: Path) -> None:
    redis = next(each for each in settings_of({"TOQUE_PROFILE": str(file)}) if each.name == "redis.url")
    assert redis.shown == "rediss://…@redis:6379/0?…"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"stoer": {}}, "stoer: there is no such setting"),
        ({"ports": {"http": 0}}, "ports.http=0"),
        ({"log": {"mode": "paper"}}, "log.mode='paper'"),
        (["a"], "the file"),
    ],
)
def test_a_wrong_profile_is_refused_by_name(tmp_path: Path, content: object, named: str) -> None:
    with pytest.raises(ProfileError, match=named):
        read_profile(write(tmp_path / "toque.yaml", content))


def test_a_profile_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"TOQUE_PROFILE=.*No such file"):
        settings_of({"TOQUE_PROFILE": str(tmp_path / "none.yaml")})


def test_a_variable_that_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(ProfileError, match=r"ports\.http='many'"):
        effective_profile({"TOQUE_HTTP_PORT": "many"})
    with pytest.raises(ProfileError, match=r"models=.*want JSON"):
        effective_profile({"TOQUE_MODELS": "{late"})


def test_the_page_of_settings_has_every_one_with_its_variable() -> None:
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for setting in settings_of({}):
        row = next((each for each in rows if each.startswith(f"| `{setting.name}`")), "")
        assert f"`{setting.variable.name}`" in row, setting.name
