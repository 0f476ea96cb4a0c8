import math
import re

import pytest

from tests.ray_apps.mlflow.conftest import Client, TrackingServer
from toque.registry import Damaged, NotFound


async def begin(client: Client, experiment: str = "exp", **fields: object) -> str:
    if experiment != "0":
        await client.send("POST", "experiments/create", json={"name": experiment})
    answer = await client.post("runs/create", experiment_id=experiment, **fields)
    return str(answer["run"]["info"]["run_id"])


async def test_experiments_have_any_title_and_an_id_of_letters(ada: Client, server: TrackingServer):
    title = "Späte Flüge / 2013"
    made = await ada.post("experiments/create", name=title, tags=[{"key": "a", "value": "b"}])
    found = (await ada.get("experiments/get-by-name", experiment_name=title))["experiment"]
    assert (found["experiment_id"], found["name"]) == (made["experiment_id"], title)
    assert found["tags"] == [{"key": "a", "value": "b"}]
    assert server.registry.get_experiment(made["experiment_id"]).title == title
    assert (await ada.refused("POST", "experiments/create", json={"name": title}))[:2] == (
        400,
        "RESOURCE_ALREADY_EXISTS",
    )
    assert (await ada.refused("GET", "experiments/get", params={"experiment_id": "none"}))[:2] == (
        404,
        "RESOURCE_DOES_NOT_EXIST",
    )


@pytest.mark.parametrize("has_run", [False, True])
async def test_experiment_0_is_renamed_tagged_deleted_and_restored(
    ada: Client, server: TrackingServer, *, has_run: bool
):
    if has_run:
        server.registry.start_run("0").finish()
    await ada.post("experiments/set-experiment-tag", experiment_id="0", key="k", value="v")
    await ada.post("experiments/delete-experiment-tag", experiment_id="0", key="none")
    await ada.post("experiments/delete", experiment_id="0")
    gone = (await ada.get("experiments/get", experiment_id="0"))["experiment"]
    assert (gone["lifecycle_stage"], gone["name"], gone["tags"]) == (
        "deleted",
        "Default",
        [{"key": "k", "value": "v"}],
    )
    assert (await ada.post("experiments/search"))["experiments"] == []
    await ada.refused("POST", "runs/create", json={"experiment_id": "0"})
    await ada.post("experiments/restore", experiment_id="0")
    await begin(ada, "0")
    await ada.post("experiments/update", experiment_id="0", new_name="Ours")
    (found,) = (await ada.post("experiments/search"))["experiments"]
    assert (found["experiment_id"], found["name"]) == ("0", "Ours")
    for other in ("none", "00"):
        assert (await ada.refused("POST", "experiments/delete", json={"experiment_id": other}))[0] == 404


async def test_a_run_without_a_name_gets_one(ada: Client):
    names = set()
    for fields in ({}, {"run_name": ""}, {"tags": [{"key": "a", "value": "b"}]}):
        run = (await ada.get("runs/get", run_id=await begin(ada, **fields)))["run"]
        tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
        assert run["info"]["run_name"] == tags["mlflow.runName"]
        names.add(run["info"]["run_name"])
    assert all(re.fullmatch(r"[a-z]+-[a-z]+-\d{1,3}", name) for name in names)
    named = await begin(ada, tags=[{"key": "mlflow.runName", "value": "mine"}])
    assert (await ada.get("runs/get", run_id=named))["run"]["info"]["run_name"] == "mine"


async def test_what_is_not_there_does_not_say_where_the_store_is(ada: Client, server: TrackingServer):
    await begin(ada)
    for run_id in ("none", "0" * 32, "m-1"):
        for method, path, given in (("GET", "runs/get", "params"), ("POST", "runs/delete", "json")):
            answer = await ada.refused(method, path, **{given: {"run_id": run_id}})
            assert answer[0] == 404
            assert "://" not in answer[2]
            assert str(server.folder) not in answer[2]


async def test_runs_are_found_by_the_data_sets_that_they_read(ada: Client):
    def read(name: str, digest: str, context: str | None) -> dict[str, object]:
        tags = [{"key": "mlflow.data.context", "value": context}] if context else []
        return {
            "dataset": {"name": name, "digest": digest, "source_type": "local", "source": "x"},
            "tags": tags,
        }

    both, one, none = [await begin(ada, run_name=name) for name in ("both", "one", "none")]
    await ada.post(
        "runs/log-inputs",
        run_id=both,
        datasets=[read("flights", "d1", "train"), read("flights-2", "d2", "eval")],
    )
    await ada.post("runs/log-inputs", run_id=one, datasets=[read("flights-2", "d2", None)])
    for where, runs in {
        "datasets.name = 'flights'": {both},
        "dataset.name = 'flights-2'": {both, one},
        "datasets.digest = 'd1' and datasets.context = 'train'": {both},
        "datasets.context = 'eval'": {both},
        "datasets.name LIKE 'flights%'": {both, one},
        "datasets.name IN ('flights', 'x')": {both},
        "datasets.name = 'light'": set(),
        "datasets.name IS NULL": {none},
        "datasets.context IS NULL": {one, none},
        "datasets.digest = 'd2' and attributes.run_name = 'one'": {one},
    }.items():
        answer = await ada.post("runs/search", experiment_ids=["exp"], filter=where)
        assert {run["info"]["run_id"] for run in answer.get("runs", [])} == runs, where
    wrong = await ada.refused(
        "POST", "runs/search", json={"experiment_ids": ["exp"], "filter": "datasets.size = 'x'"}
    )
    assert wrong[0] == 400


async def test_an_experiment_of_registry_runs_is_renamed_deleted_and_restored(
    ada: Client, server: TrackingServer
):
    server.registry.start_run("flights", name="ours").finish()
    assert (await ada.get("experiments/get", experiment_id="flights"))["experiment"]["name"] == "flights"
    await ada.post("experiments/update", experiment_id="flights", new_name="Flights of 2013")
    await ada.post("experiments/set-experiment-tag", experiment_id="flights", key="k", value="v")
    await ada.post("experiments/delete", experiment_id="flights")
    assert [e["name"] for e in (await ada.post("experiments/search"))["experiments"]] == ["Default"]
    (gone,) = (await ada.post("experiments/search", view_type="DELETED_ONLY"))["experiments"]
    assert (gone["name"], gone["lifecycle_stage"]) == ("Flights of 2013", "deleted")
    code = (await ada.refused("POST", "runs/create", json={"experiment_id": "flights"}))[1]
    assert code == "INVALID_PARAMETER_VALUE"
    await ada.post("experiments/restore", experiment_id="flights")
    (found,) = (await ada.get("experiments/search", filter="name LIKE 'Fl%' AND tags.k = 'v'"))["experiments"]
    assert found["experiment_id"] == "flights"
    (run,) = (await ada.post("runs/search", experiment_ids=["flights"]))["runs"]
    assert (run["info"]["run_name"], run["info"]["status"]) == ("ours", "FINISHED")


async def test_the_default_experiment_needs_no_creation(ada: Client):
    run = await begin(ada, "0")
    assert (await ada.get("runs/get", run_id=run))["run"]["info"]["experiment_id"] == "0"
    found = (await ada.get("experiments/get-by-name", experiment_name="Default"))["experiment"]
    assert found["experiment_id"] == "0"


async def test_a_call_is_stored_before_its_response(ada: Client, server: TrackingServer):
    run = await begin(ada, run_name="first", start_time=1_356_998_400_000)
    await ada.post("runs/log-metric", run_id=run, key="loss", value=0.5, timestamp=1_356_998_401_500, step=3)
    await ada.post("runs/log-metric", run_id=run, key="loss", value="NaN", step=4)
    await ada.post("runs/log-parameter", run_id=run, key="lr", value="0.1")
    await ada.post("runs/set-tag", run_uuid=run, key="a", value="1")
    record = server.registry.get_record(run)
    assert math.isnan(record.metrics["loss"])
    assert (record.params, record.tags["a"], record.name) == ({"lr": "0.1"}, "1", "first")
    assert (record.status, record.actor, record.started_at.year) == ("RUNNING", "ada", 2013)
    history = (await ada.get("metrics/get-history", run_id=run, metric_key="loss"))["metrics"]
    assert history[0] == {"key": "loss", "value": 0.5, "timestamp": 1_356_998_401_500, "step": 3}
    assert history[1]["value"] == "NaN"
    page = await ada.get("metrics/get-history", run_id=run, metric_key="loss", max_results=1, page_token="1")
    assert [point["step"] for point in page["metrics"]] == [4]


async def test_a_batch_is_stored_as_one_object(ada: Client, server: TrackingServer):
    run = await begin(ada)
    metrics = [{"key": f"m{n % 10}", "value": n, "step": n, "timestamp": 1} for n in range(1000)]
    await ada.post("runs/log-batch", run_id=run, metrics=metrics, params=[{"key": "p", "value": "1"}])
    assert len(list(server.registry.store.list(f"runs/{run}/segments/"))) == 1
    assert server.registry.get_record(run).metrics["m9"] == 999.0


async def test_a_parameter_cannot_change(ada: Client):
    run = await begin(ada)
    await ada.post("runs/log-parameter", run_id=run, key="lr", value="0.1")
    await ada.post("runs/log-parameter", run_id=run, key="lr", value="0.1")
    status, code, message = await ada.refused(
        "POST", "runs/log-parameter", json={"run_id": run, "key": "lr", "value": "0.2"}
    )
    assert (status, code) == (400, "INVALID_PARAMETER_VALUE")
    assert "'0.1' already" in message
    twice = [{"key": "x", "value": "1"}, {"key": "x", "value": "2"}]
    assert (
        "given twice"
        in (await ada.refused("POST", "runs/log-batch", json={"run_id": run, "params": twice}))[2]
    )


async def test_an_ended_run_can_be_tagged_and_resumed(ada: Client, server: TrackingServer):
    run = await begin(ada)
    ended = await ada.post("runs/update", run_id=run, status="FAILED", end_time=1_356_998_500_000)
    assert (ended["run_info"]["status"], ended["run_info"]["end_time"]) == ("FAILED", 1_356_998_500_000)
    await ada.post("runs/set-tag", run_id=run, key="verdict", value="good")
    await ada.post("runs/log-metric", run_id=run, key="late", value=1)
    (found,) = server.registry.search_runs("exp", "tags.verdict = 'good' and metrics.late = 1")
    assert found.status == "FAILED"
    await ada.post("runs/delete-tag", run_id=run, key="verdict")
    assert "verdict" not in server.registry.get_record(run).tags
    await ada.post("runs/update", run_id=run, status="RUNNING", run_name="again")
    (again,) = server.registry.search_runs("exp", "status = 'RUNNING'")
    assert (again.name, again.ended_at, again.metrics) == ("again", None, {"late": 1.0})
    await ada.post("runs/update", run_id=run, status="KILLED")
    assert server.registry.get_record(run).status == "KILLED"


async def test_a_deleted_run_is_hidden_until_it_is_restored(ada: Client):
    run = await begin(ada)
    await ada.post("runs/delete", run_id=run)
    assert (await ada.post("runs/search", experiment_ids=["exp"]))["runs"] == []
    (hidden,) = (await ada.post("runs/search", experiment_ids=["exp"], run_view_type="DELETED_ONLY"))["runs"]
    assert hidden["info"]["lifecycle_stage"] == "deleted"
    assert all(not tag["key"].startswith("toque.") for tag in hidden["data"]["tags"])
    await ada.post("runs/restore", run_id=run)
    assert len((await ada.post("runs/search", experiment_ids=["exp"]))["runs"]) == 1


async def test_search_pages_in_order(ada: Client):
    for loss in (0.3, 0.1, 0.2):
        run = await begin(ada)
        await ada.post("runs/log-metric", run_id=run, key="loss", value=loss)
    asked = {"experiment_ids": ["exp"], "order_by": ["metrics.loss DESC"], "max_results": 2}
    first = await ada.post("runs/search", **asked)
    rest = await ada.post("runs/search", **asked, page_token=first["next_page_token"])
    losses = [run["data"]["metrics"][0]["value"] for run in (*first["runs"], *rest["runs"])]
    assert losses == [0.3, 0.2, 0.1]
    assert "next_page_token" not in rest
    code, message = (
        await ada.refused("POST", "runs/search", json={"experiment_ids": ["exp"], "filter": "x ~ 1"})
    )[1:]
    assert code == "INVALID_PARAMETER_VALUE"
    assert "cannot read ' ~ 1'" in message


async def test_inputs_and_outputs_are_recorded_once(ada: Client):
    run = await begin(ada)
    data = {"dataset": {"name": "flights", "digest": "abc", "source_type": "local", "source": "x"}}
    for _ in range(2):
        await ada.post("runs/log-inputs", run_id=run, datasets=[data])
        await ada.post("runs/outputs", run_id=run, models=[{"model_id": "m-1", "step": 0}])
    found = (await ada.get("runs/get", run_id=run))["run"]
    assert found["inputs"]["dataset_inputs"] == [data]
    assert found["outputs"]["model_outputs"] == [{"model_id": "m-1", "step": 0}]


async def test_artifacts_are_uploaded_and_downloaded_and_damage_is_refused(
    ada: Client, server: TrackingServer
):
    run = await begin(ada)
    root = f"mlflow-artifacts/artifacts/runs/{run}"
    for path in ("model/a.bin", "model/b.bin", "top.txt"):
        assert (await ada.send("PUT", f"{root}/{path}", content=b"x" * 1000)).status_code == 200
    listed = await ada.get("mlflow-artifacts/artifacts", path=f"runs/{run}")
    assert listed["files"] == [
        {"path": "model", "is_dir": True},
        {"path": "top.txt", "is_dir": False, "file_size": 1000},
    ]
    below = (await ada.get("artifacts/list", run_id=run, path="model"))["files"]
    assert [file["path"] for file in below] == ["model/a.bin", "model/b.bin"]
    assert (await ada.send("GET", f"{root}/model/a.bin")).content == b"x" * 1000
    assert (await ada.refused("GET", f"{root}/none"))[:2] == (404, "RESOURCE_DOES_NOT_EXIST")
    assert (await ada.refused("PUT", f"{root}", content=b""))[1] == "INVALID_PARAMETER_VALUE"
    assert (await ada.refused("GET", "mlflow-artifacts/artifacts", params={"path": "runs/../../x"}))[0] == 400
    for key in server.registry.store.list(f"runs/{run}/artifacts/"):
        server.registry.store.put(key, b"y" * 1000)
    assert (await ada.refused("GET", f"{root}/top.txt"))[:2] == (409, "DATA_LOSS")
    with pytest.raises(Damaged):
        server.registry.get_run(run).download_artifact("top.txt", server.folder)


async def test_logged_models_have_files_parameters_tags_and_a_final_status(ada: Client):
    run = await begin(ada)
    made = await ada.post(
        "logged-models",
        experiment_id="exp",
        name="net",
        source_run_id=run,
        params=[{"key": "lr", "value": "1"}],
    )
    model_id = made["model"]["info"]["model_id"]
    assert made["model"]["info"]["status"] == "LOGGED_MODEL_PENDING"
    await ada.send("PUT", f"mlflow-artifacts/artifacts/runs/{model_id[2:]}/MLmodel", content=b"flavors: {}")
    await ada.send("PATCH", f"logged-models/{model_id}/tags", json={"tags": [{"key": "a", "value": "b"}]})
    await ada.post("runs/log-batch", run_id=run, metrics=[{"key": "auc", "value": 0.7, "model_id": model_id}])
    ended = await ada.send("PATCH", f"logged-models/{model_id}", json={"status": "LOGGED_MODEL_READY"})
    assert ended.json()["model"]["info"]["status"] == "LOGGED_MODEL_READY"
    found = (await ada.get(f"logged-models/{model_id}"))["model"]
    assert found["info"]["source_run_id"] == run
    assert found["info"]["tags"] == [{"key": "a", "value": "b"}]
    assert found["data"]["params"] == [{"key": "lr", "value": "1"}]
    assert found["data"]["metrics"][0]["value"] == 0.7
    searched = await ada.post("logged-models/search", experiment_ids=["exp"], filter="metrics.auc > 0.5")
    assert [model["info"]["model_id"] for model in searched["models"]] == [model_id]
    files = (await ada.get(f"logged-models/{model_id}/artifacts/directories"))["files"]
    assert [file["path"] for file in files] == ["MLmodel"]
    await ada.send("DELETE", f"logged-models/{model_id}")
    assert (await ada.refused("GET", f"logged-models/{model_id}"))[0] == 404
    assert (await ada.post("experiments/search"))["experiments"][0]["name"] != "logged-models"


async def test_reserved_tags_cannot_be_written(ada: Client):
    run = await begin(ada)
    body = {"run_id": run, "key": "toque.mlflow.deleted", "value": "true"}
    assert (await ada.refused("POST", "runs/set-tag", json=body))[1] == "INVALID_PARAMETER_VALUE"


def test_a_run_that_does_not_exist_is_not_found(server: TrackingServer):
    with pytest.raises(NotFound):
        server.registry.get_experiment("nothing")
