import pytest

from tests.ray_apps.mlflow.conftest import Client, TrackingServer
from tests.ray_apps.mlflow.test_tracking import begin
from toque.registry import ModelPolicy, Refused, Registry


async def logged(client: Client, files: dict[str, bytes]) -> str:
    """A run with the files of a model below `model`."""
    run = await begin(client)
    for path, content in files.items():
        answer = await client.send(
            "PUT", f"mlflow-artifacts/artifacts/runs/{run}/model/{path}", content=content
        )
        assert answer.status_code == 200
    return run


async def registered(client: Client, **files: bytes) -> str:
    """A version of model `late`; returns its number."""
    run = await logged(client, files or {"weights": b"w"})
    await client.send("POST", "registered-models/create", json={"name": "late"})
    made = await client.post("model-versions/create", name="late", source=f"runs:/{run}/model", run_id=run)
    return str(made["model_version"]["version"])


async def test_a_version_copies_the_files_of_its_run_and_keeps_lineage(ada: Client, server: TrackingServer):
    number = await registered(ada)
    version = server.registry.get_version("late", int(number))
    assert set(version.files) == {"weights"}
    run = version.lineage.run
    await ada.send("PUT", f"mlflow-artifacts/artifacts/runs/{run}/model/weights", content=b"changed")
    uri = (await ada.get("model-versions/get-download-uri", name="late", version=number))["artifact_uri"]
    assert uri == "mlflow-artifacts:/models/late/1"
    assert (await ada.send("GET", "mlflow-artifacts/artifacts/models/late/1/weights")).content == b"w"
    assert server.registry.dependents(str(run))[0].version == 1
    copy = await ada.post("model-versions/create", name="late", source="models:/late/1")
    assert copy["model_version"]["run_id"] == run


async def test_a_version_of_files_that_are_elsewhere_is_refused(ada: Client):
    await ada.post("registered-models/create", name="late")
    for source in ("s3://other/model", "file:///etc", "https://x/y", "mlflow-artifacts:/other/1", ""):
        code = (await ada.refused("POST", "model-versions/create", json={"name": "late", "source": source}))[
            1
        ]
        assert code == "INVALID_PARAMETER_VALUE", source
    run = await begin(ada)
    asked = {"name": "late", "source": f"runs:/{run}/model"}
    status, code, message = await ada.refused("POST", "model-versions/create", json=asked)
    assert (status, code) == (404, "RESOURCE_DOES_NOT_EXIST")
    assert "no files" in message
    assert (await ada.get("model-versions/search", filter="name = 'late'"))["model_versions"] == []


async def test_code_is_refused_unless_it_is_accepted_by_name(ada: Client):
    run = await logged(ada, {"model.pkl": b"\x80\x04.", "weights": b"w"})
    await ada.post("registered-models/create", name="late")
    asked = {"name": "late", "source": f"runs:/{run}/model"}
    status, code, message = await ada.refused("POST", "model-versions/create", json=asked)
    assert (status, code) == (403, "PERMISSION_DENIED")
    assert "model.pkl" in message
    assert "tags={'toque.allow_code'" in message
    await ada.post("model-versions/create", **asked, tags=[{"key": "toque.allow_code", "value": "model.pkl"}])
    assert (await ada.send("GET", "mlflow-artifacts/artifacts/models/late/1/weights")).status_code == 200


async def test_a_publishers_tag_does_not_let_code_be_downloaded(ada: Client, server: TrackingServer):
    run = await logged(ada, {"model.pkl": b"\x80\x04."})
    await ada.post("registered-models/create", name="late")
    tags = [{"key": "toque.allow_code", "value": "model.pkl"}]
    await ada.post("model-versions/create", name="late", source=f"runs:/{run}/model", tags=tags)
    path = "mlflow-artifacts/artifacts/models/late/1/model.pkl"
    assert (await ada.refused("GET", path))[1] == "PERMISSION_DENIED"
    server.registry.as_actor("bob").approve("late", 1, accept_code=["model.pkl"])
    assert (await ada.send("GET", path)).content == b"\x80\x04."
    server.registry.as_actor("bob").reject("late", 1)
    assert (await ada.refused("GET", path))[1] == "PERMISSION_DENIED"
    server.registry.set_policy("late", ModelPolicy(allow_code=("*.pkl",)))
    assert (await ada.send("GET", path)).status_code == 200


async def test_tags_that_change_serving_are_frozen_once_approved(ada: Client, server: TrackingServer):
    await registered(ada)
    tag = {"name": "late", "version": "1", "key": "feature_service", "value": "late"}
    await ada.post("model-versions/set-tag", **tag)
    server.registry.as_actor("bob").approve("late", 1)
    status, code, message = await ada.refused(
        "POST", "model-versions/set-tag", json={**tag, "value": "other"}
    )
    assert (status, code) == (403, "PERMISSION_DENIED")
    assert "register a new version" in message
    gone = await ada.refused("DELETE", "model-versions/delete-tag", json={**tag, "value": ""})
    assert gone[1] == "PERMISSION_DENIED"
    await ada.post("model-versions/set-tag", **{**tag, "key": "team", "value": "ops"})


async def test_an_unapproved_version_does_not_reach_a_guarded_alias(ada: Client, server: TrackingServer):
    await registered(ada)
    server.registry.set_policy("late", ModelPolicy(guarded=frozenset({"champion"}), approvals=1))
    pointing = {"name": "late", "alias": "champion", "version": "1"}
    status, code, message = await ada.refused("POST", "registered-models/alias", json=pointing)
    assert (status, code) == (403, "PERMISSION_DENIED")
    assert "0 of 1 approvals" in message
    asked = {"name": "late", "alias": "champion"}
    assert (await ada.refused("GET", "registered-models/alias", params=asked))[0] == 404
    with pytest.raises(Refused, match="may not approve"):
        server.registry.approve("late", 1)
    server.registry.as_actor("bob").approve("late", 1)
    await ada.post("registered-models/alias", **pointing)
    assert (await ada.get("registered-models/alias", **asked))["model_version"]["aliases"] == ["champion"]
    last = server.registry.history("late")[-1]
    assert (last.actor, last.body["alias"]) == ("ada", "champion")


async def test_a_model_that_never_had_a_version_is_deleted_and_its_name_is_free(
    ada: Client, server: TrackingServer
):
    which = {"name": "empty"}
    for _ in range(3):  # each time that its files are refused
        await ada.post(
            "registered-models/create", name="empty", description="first", tags=[{"key": "a", "value": "b"}]
        )
        await ada.refused("POST", "model-versions/create", json={**which, "source": "file:///etc"})
        assert (await ada.send("DELETE", "registered-models/delete", json=which)).status_code == 200
        assert (await ada.refused("GET", "registered-models/get", params=which))[0] == 404
        assert (await ada.refused("DELETE", "registered-models/delete", json=which))[0] == 404
        assert (await ada.get("registered-models/search")) == {"registered_models": []}
        fresh = Registry(server.registry.store, actor="x")
        assert fresh.list_models() == []
    await ada.post("registered-models/create", name="empty")
    found = (await ada.get("registered-models/get", name="empty"))["registered_model"]
    assert (found.get("description", ""), found["tags"]) == ("", [])


async def test_a_model_with_a_version_is_not_deleted_even_if_that_is(ada: Client):
    number = await registered(ada)
    for _ in range(2):
        code = (await ada.refused("DELETE", "registered-models/delete", json={"name": "late"}))[1]
        assert code == "NOT_IMPLEMENTED"
        await ada.send("DELETE", "model-versions/delete", json={"name": "late", "version": number})


@pytest.mark.parametrize("value", ["true", "True"])
async def test_a_prompt_is_refused_before_anything_is_made(ada: Client, value: str):
    tags = [{"key": "mlflow.prompt.is_prompt", "value": value}]
    refused = await ada.refused("POST", "registered-models/create", json={"name": "p", "tags": tags})
    assert (refused[0], "prompts" in refused[2]) == (501, True)
    assert (await ada.refused("GET", "registered-models/get", params={"name": "p"}))[0] == 404


async def test_an_aliased_version_cannot_be_deleted(ada: Client):
    await registered(ada)
    await ada.post("registered-models/alias", name="late", alias="champion", version="1")
    which = {"name": "late", "version": "1"}
    assert "points to it" in (await ada.refused("DELETE", "model-versions/delete", json=which))[2]
    await ada.send("DELETE", "registered-models/alias", json={"name": "late", "alias": "champion"})
    assert (await ada.send("DELETE", "model-versions/delete", json=which)).status_code == 200
    assert (await ada.refused("GET", "model-versions/get", params=which))[0] == 404
    assert (await ada.get("registered-models/get", name="late"))["registered_model"]["latest_versions"] == []


async def test_models_are_described_tagged_and_found(ada: Client):
    await ada.post(
        "registered-models/create", name="late", description="d", tags=[{"key": "a", "value": "b"}]
    )
    await ada.post("registered-models/create", name="other")
    assert (await ada.refused("POST", "registered-models/create", json={"name": "late"}))[1] == (
        "RESOURCE_ALREADY_EXISTS"
    )
    assert (await ada.refused("POST", "registered-models/create", json={"name": "a/b"}))[1] == (
        "INVALID_PARAMETER_VALUE"
    )
    await ada.send("PATCH", "registered-models/update", json={"name": "late", "description": "Late or not?"})
    await ada.post("registered-models/set-tag", name="late", key="c", value="d")
    await ada.send("DELETE", "registered-models/delete-tag", json={"name": "late", "key": "a"})
    (found,) = (await ada.get("registered-models/search", filter="name ILIKE 'LA%' and tags.c = 'd'"))[
        "registered_models"
    ]
    assert (found["description"], found["tags"]) == ("Late or not?", [{"key": "c", "value": "d"}])
    page = await ada.get("registered-models/search", order_by="name DESC", max_results=1)
    assert ([m["name"] for m in page["registered_models"]], page["next_page_token"]) == (["other"], "1")


async def test_versions_are_found_newest_first(ada: Client):
    for _ in range(3):
        await registered(ada)
    found = (await ada.get("model-versions/search", filter="name = 'late'", order_by="version_number DESC"))[
        "model_versions"
    ]
    assert [version["version"] for version in found] == ["3", "2", "1"]
    latest = await ada.post("registered-models/get-latest-versions", name="late")
    assert [version["version"] for version in latest["model_versions"]] == ["3"]


async def test_viewers_read_and_only_operators_write(ada: Client, vera: Client, http, server: TrackingServer):
    await registered(ada)
    assert (await vera.get("registered-models/get", name="late"))["registered_model"]["name"] == "late"
    for method, path, body in (
        ("POST", "runs/create", {"experiment_id": "exp"}),
        ("POST", "experiments/create", {"name": "new"}),
        ("POST", "registered-models/alias", {"name": "late", "alias": "champion", "version": "1"}),
        ("PUT", "mlflow-artifacts/artifacts/runs/x/y", {}),
        ("POST", "logged-models", {"experiment_id": "exp"}),
    ):
        status, code, message = await vera.refused(method, path, json=body)
        assert (status, code) == (403, "PERMISSION_DENIED")
        assert "vera has viewer:default" in message
    for token in ("", "tq_0_0", server.tokens["ada"] + "x"):
        assert (await Client(http, token).refused("GET", "registered-models/search"))[:2] == (
            401,
            "UNAUTHENTICATED",
        )


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "registered-models/rename", {"name": "late", "new_name": "x"}, 501, "NOT_IMPLEMENTED"),
        ("DELETE", "registered-models/delete", {"name": "none"}, 404, "RESOURCE_DOES_NOT_EXIST"),
        ("POST", "model-versions/transition-stage", {"name": "late", "version": "1"}, 501, "NOT_IMPLEMENTED"),
        ("PATCH", "model-versions/update", {"name": "late", "version": "1"}, 501, "NOT_IMPLEMENTED"),
        ("DELETE", "mlflow-artifacts/artifacts/runs/x/y", {}, 501, "NOT_IMPLEMENTED"),
        ("POST", "mlflow-artifacts/mpu/create/x", {}, 501, "NOT_IMPLEMENTED"),
        ("POST", "traces/search", {}, 404, "ENDPOINT_NOT_FOUND"),
        ("POST", "registered-models/get", {}, 404, "ENDPOINT_NOT_FOUND"),
        ("POST", "runs/log-metric", {"run_id": "x", "key": "a"}, 400, "INVALID_PARAMETER_VALUE"),
        ("POST", "runs/update", {}, 400, "INVALID_PARAMETER_VALUE"),
        ("POST", "registered-models/alias", {"name": "late", "alias": "a", "version": "one"}, 400, "INVALID_PARAMETER_VALUE"),
        ("POST", "runs/log-model", {"run_id": "x", "model_json": "{"}, 404, "RESOURCE_DOES_NOT_EXIST"),
        ("GET", "model-versions/search?max_results=0", None, 400, "INVALID_PARAMETER_VALUE"),
        ("GET", "model-versions/search?page_token=x", None, 400, "INVALID_PARAMETER_VALUE"),
    ],
)  # fmt: skip
async def test_refusals_have_mlflows_error_shape(
    ada: Client, method: str, path: str, body: dict | None, status: int, code: str
):
    assert (await ada.refused(method, path, json=body))[:2] == (status, code)


async def test_the_id_of_a_run_is_not_a_logged_model_and_bad_json_is_refused(ada: Client):
    run = await begin(ada)
    assert (await ada.refused("GET", f"logged-models/m-{run}"))[:2] == (404, "RESOURCE_DOES_NOT_EXIST")
    assert (await ada.refused("GET", f"logged-models/{run}"))[:2] == (400, "INVALID_PARAMETER_VALUE")
    body = {"run_id": run, "model_json": "{"}
    assert (await ada.refused("POST", "runs/log-model", json=body))[1] == "INVALID_PARAMETER_VALUE"
    assert (await ada.refused("POST", "runs/set-tag", content=b"{"))[1] == "INVALID_PARAMETER_VALUE"


async def test_a_body_above_the_limit_is_refused_but_an_artifact_is_stored(ada: Client):
    run = await begin(ada)
    large = "x" * (17 << 20)
    code, message = (
        await ada.refused("POST", "runs/set-tag", json={"run_id": run, "key": "a", "value": large})
    )[1:]
    assert code == "INVALID_PARAMETER_VALUE"
    assert "larger than" in message
    path = f"mlflow-artifacts/artifacts/runs/{run}/large"
    assert (await ada.send("PUT", path, content=large.encode())).status_code == 200
    assert len((await ada.send("GET", path)).content) == len(large)
