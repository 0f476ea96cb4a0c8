"""Worlds of the registry's verbs: a model with three versions, tokens, workspaces, layers, runs and experiments."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.conditions.faults import FaultyStore, Verb
from tests.faults.templates import fill_once
from toque.registry import LayerShare, ModelPolicy, Registry, TableSnapshot
from toque.registry.access import Access, signing
from toque.registry.errors import AlreadyExists, NotFound, RegistryError, Stale
from toque.registry.history import audit
from toque.registry.runs import Run, RunLog
from toque.registry.runs.record import Segment

MODEL, OTHER = "late", "late-2"
POLICY = ModelPolicy(guarded=frozenset({"champion"}), approvals=0)


@cache
def signing_key() -> bytes:
    """Private key, made once: what it signs differs from time to time, and nothing else here does."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class RegistryWorld:
    """Registry and access list over a store that may fail, beside one over the same store that answers."""

    def __init__(self, faulty: FaultyStore) -> None:
        self.faulty = faulty
        self.folder = TemporaryDirectory()
        self.path = Path(self.folder.name)
        self.killed = False
        self.anew()

    def restart(self) -> None:
        """Start the process anew after a kill, with nothing but what is stored."""
        self.killed = True
        self.anew()

    def anew(self) -> RegistryWorld:
        """Forget what was read: a verb that reads more meets more faults."""
        self.run: Run | None = None
        self.registry = Registry(self.faulty, actor="ada")  # type: ignore[arg-type]  # has the store's verbs
        self.access = Access(self.faulty, actor="ada")  # type: ignore[arg-type]  # as above
        return self

    def reader(self) -> Registry:
        return Registry(self.faulty.store, actor="auditor")

    def close(self) -> None:
        self.folder.cleanup()

    def files(self, text: str) -> Path:
        folder = self.path / text
        folder.mkdir(exist_ok=True)
        (folder / "weights.json").write_text(f'"{text}"')
        (folder / "shared.json").write_text('"the same in every version"')
        return folder

    def check(self) -> None:
        """Check that every journal folds from its start, and that every file of every version is readable."""
        store, reader = self.faulty.store, self.reader()
        report = audit(store)
        assert not report.findings, report.findings
        for model in reader.list_models():
            reader.verify(model)
            for version in reader.list_versions(model):
                target = self.path / f"download-{model}-{version.version}"
                reader.download(model, version.version, target)
                assert {item.name for item in target.iterdir() if item.is_file()} >= set(version.files)

    def models(self) -> object:
        """Say what a reader sees of all models, without times, numbers of entries and random salts."""
        reader = self.reader()
        return {name: _shown(reader, name) for name in reader.list_models()}

    def layers(self) -> object:
        reader = self.reader()
        return {name: sorted(reader.layer(name)) for name in reader.list_layers()}

    def tokens(self) -> object:
        access = Access(self.faulty.store, actor="auditor")
        tokens = sorted((token.name, token.revoked_at is not None) for token in access.list_tokens())
        return tokens, [(item.name, item.description) for item in access.list_workspaces()]

    def runs(self) -> object:
        """Say what the index and the records of all runs have."""
        reader = self.reader()
        noted = [(item.name, item.title, dict(item.tags), item.deleted) for item in reader.all_experiments()]
        runs = []
        for experiment in reader.list_experiments():
            for run in reader.search_runs(experiment):
                record = reader.get_run(run.id).record()
                metrics = {
                    name: [(p.step, p.value) for p in reader.get_run(run.id).series(name)]
                    for name in record.metrics
                }
                if self.killed:  # a program that was killed and logs again logs what it did once more
                    metrics = {name: list(dict.fromkeys(points)) for name, points in metrics.items()}
                runs.append((run.name, run.status, dict(record.params), dict(record.tags), metrics))
        return noted, sorted(map(repr, runs))


def _shown(reader: Registry, name: str) -> object:
    state = reader.get_model(name)
    versions = {
        number: (
            version.digest,
            version.status,
            dict(version.tags),
            [(item.actor, item.approved) for item in version.approvals],
            {gate: outcome.passed for gate, outcome in version.gates.items()},
            len(version.signatures) > 0,
        )
        for number, version in state.versions.items()
    }
    traffic = state.traffic
    arms = traffic and [(arm.name, arm.version, arm.share) for arm in traffic.arms]
    split = (state.split.shadows, state.split.layer and state.split.layer.name, arms)
    return (
        versions, dict(state.aliases), split, [item.name for item in state.holdouts],
        state.policy.model_dump(), dict(state.tags), state.description,
    )  # fmt: skip


def _fill(faulty: FaultyStore) -> None:
    world = RegistryWorld(faulty)
    registry = world.registry
    for model in (MODEL, OTHER):
        registry.create_model(model, policy=POLICY)
        for number in (1, 2, 3):
            registry.create_version(model, world.files(f"{model}-{number}"))
        registry.set_alias(model, "champion", 1)
    registry.set_alias(MODEL, "champion", 2)
    registry.set_alias(MODEL, "candidate", 3)
    registry.begin_holdout(OTHER, "everyone", 0.1)
    world.access.create_token("robot", "operator")
    world.access.create_workspace("shop")
    registry.create_experiment("tries", title="Tries")
    RunLog.begin(registry, "tries", name="first")
    world.close()


def world(faulty: FaultyStore) -> RegistryWorld:
    fill_once(faulty, _fill)
    return RegistryWorld(faulty)


def with_garbage(faulty: FaultyStore) -> RegistryWorld:
    filled = world(faulty)
    filled.registry.delete_alias(MODEL, "candidate")
    filled.registry.delete_version(MODEL, 3)
    return filled.anew()


def in_layer(faulty: FaultyStore) -> RegistryWorld:
    filled = world(faulty)
    filled.registry.claim(OTHER, LayerShare(name="page", share=0.5))
    return filled.anew()


def with_empty_model(faulty: FaultyStore) -> RegistryWorld:
    filled = world(faulty)
    filled.registry.create_model("empty")
    return filled.anew()


def only_run(world: RegistryWorld) -> str:
    return world.reader().search_runs("tries")[-1].id


def again_or_done(
    act: Callable[[RegistryWorld], object], *refusals: type[RegistryError]
) -> Callable[[RegistryWorld], None]:
    """Make the second call of a verb, which may be refused because the first took effect."""

    def again(world: RegistryWorld) -> None:
        try:
            act(world)
        except refusals:
            world.anew()

    return again


def verb(
    name: str,
    act: Callable[[RegistryWorld], object],
    *,
    refusals: Iterable[type[RegistryError]] = (),
    prepare: Callable[[FaultyStore], RegistryWorld] = world,
    outcome: Callable[[RegistryWorld], object] = RegistryWorld.models,
    check: Callable[[RegistryWorld], object] = RegistryWorld.check,
) -> Verb[RegistryWorld]:
    return Verb(
        name,
        prepare=prepare,
        act=act,
        again=again_or_done(act, *refusals),
        check=check,
        restart=RegistryWorld.restart,
        outcome=outcome,
        close=RegistryWorld.close,
    )


def register(world: RegistryWorld) -> None:
    world.registry.create_version(MODEL, world.files("new"), key="run-9", tags={"a": "b"})


def add_signature(world: RegistryWorld) -> None:
    from toque.registry.models.models import binding, digests  # of one verb alone

    version = world.reader().get_version(MODEL, 1)
    bundle = signing.sign(binding(MODEL, version), digests(version), signing_key())
    world.registry.add_signature(MODEL, 1, bundle, signing.public_of(signing_key()))


def blobs_of(world: RegistryWorld) -> object:
    needed = {
        blob.sha256 for version in world.reader().list_versions(MODEL) for blob in version.files.values()
    }
    stored = {key.rpartition("/")[2] for key in world.faulty.store.list(f"models/{MODEL}/blobs/")}
    assert {name.partition(".")[0] for name in stored} == needed, "files without a version are left"
    return world.models()


def start_run(world: RegistryWorld) -> None:
    run = world.registry.start_run("tries", name="second", params={"depth": 3})
    run.log_metrics({"loss": 0.5}, step=1)
    run.finish()


def at_least_one_run(world: RegistryWorld) -> None:
    """Check that a start whose answer was lost is a run that is listed, and that the second call's run is whole."""
    world.check()
    runs = [run for run in world.reader().search_runs("tries") if run.name == "second"]
    assert 1 <= len(runs) <= 2
    whole = [run for run in runs if run.status == "FINISHED" and "loss" in run.metrics]
    assert whole, [run.status for run in runs]
    assert all(dict(run.params) == {"depth": "3"} for run in runs)


def log_to_run(log: Callable[[Any], object]) -> Callable[[RegistryWorld], None]:
    def act(world: RegistryWorld) -> None:
        if world.run is None:
            world.run = world.registry.get_run(only_run(world))
            log(world.run)
        world.run.flush()

    return act


def log_artifact(world: RegistryWorld) -> None:
    world.registry.get_run(only_run(world)).log_artifact(world.files("artifact") / "weights.json")


def artifact_is_readable(world: RegistryWorld) -> None:
    world.check()
    run = world.reader().get_run(only_run(world))
    assert run.download_artifact("weights.json", world.path / "fetched").read_text() == '"artifact"'


def segment(world: RegistryWorld) -> None:
    RunLog.of(world.registry, only_run(world)).write(Segment(params={"depth": "3"}, tags={"a": "b"}))


def begun(world: RegistryWorld) -> None:
    world.check()
    runs = [run for run in world.reader().search_runs("tries") if run.name == "remote"]
    assert 1 <= len(runs) <= 2


def lost_run(faulty: FaultyStore) -> RegistryWorld:
    """Begin a run whose process is gone: no heartbeat comes any more."""
    filled = world(faulty)
    run = filled.registry.start_run("tries", name="gone")
    run._stop.set()
    faulty.store.delete(f"runs/{run.id}/heartbeat")
    return filled.anew()


SHARE = LayerShare(name="page", share=0.5)
VERBS = [
    verb("Registry.create_model", lambda w: w.registry.create_model("new", policy=POLICY), refusals=[AlreadyExists]),
    verb("Registry.set_model_tags", lambda w: w.registry.set_model_tags(MODEL, {"a": "b"}, description="text")),
    verb("Registry.create_version", register),
    verb("Registry.set_version_tags", lambda w: w.registry.set_version_tags(MODEL, 1, {"a": "b"})),
    verb("Registry.delete_model", lambda w: w.registry.delete_model("empty"), prepare=with_empty_model, refusals=[NotFound]),
    verb("Registry.delete_version", lambda w: w.registry.delete_version(OTHER, 3), refusals=[NotFound]),
    verb("Registry.collect_garbage", lambda w: w.registry.collect_garbage(grace=timedelta(0)), prepare=with_garbage, outcome=blobs_of),
    verb("Registry.sign_version", lambda w: w.registry.sign_version(MODEL, 1, signing_key())),
    verb("Registry.add_signature", add_signature),
    verb("Registry.set_policy", lambda w: w.registry.set_policy(MODEL, ModelPolicy(approvals=2))),
    verb("Registry.approve", lambda w: w.registry.as_actor("bob").approve(MODEL, 3)),
    verb("Registry.reject", lambda w: w.registry.as_actor("bob").reject(MODEL, 1)),
    verb("Registry.record_gate", lambda w: w.registry.record_gate(MODEL, 3, "offline", passed=True)),
    verb("Registry.set_alias", lambda w: w.registry.set_alias(MODEL, "champion", 3, expected=2), refusals=[Stale]),
    verb("Registry.promote", lambda w: w.registry.promote(MODEL, 3, expected=2), refusals=[Stale]),
    verb("Registry.delete_alias", lambda w: w.registry.delete_alias(MODEL, "candidate")),
    verb("Registry.rollback", lambda w: w.registry.rollback(MODEL, expected=2), refusals=[Stale]),
    verb("Registry.set_traffic", lambda w: w.registry.set_traffic(MODEL, {"canary": (3, 0.2)}, shadows=[1], layer=SHARE)),
    verb("Registry.begin_holdout", lambda w: w.registry.begin_holdout(MODEL, "everyone", 0.1)),
    verb("Registry.end_holdout", lambda w: w.registry.end_holdout(OTHER, "everyone")),
    verb("Registry.claim", lambda w: w.registry.claim(MODEL, SHARE), outcome=RegistryWorld.layers),
    verb("Registry.release", lambda w: w.registry.release(OTHER, "page"), prepare=in_layer, outcome=RegistryWorld.layers),
    verb("Registry.create_experiment", lambda w: w.registry.create_experiment("more", title="More"), refusals=[AlreadyExists], outcome=RegistryWorld.runs),
    verb("Registry.change_experiment", lambda w: w.registry.change_experiment("tries", title="Trials", tags={"a": "b"}), outcome=RegistryWorld.runs),
    verb("Registry.start_run", start_run, check=at_least_one_run, outcome=lambda _: None),
    verb("Registry.reap_runs", lambda w: w.registry.reap_runs("tries"), prepare=lost_run, outcome=RegistryWorld.runs),
    verb("Run.log_params", log_to_run(lambda run: run.log_params({"depth": 3})), outcome=RegistryWorld.runs),
    verb("Run.log_metrics", log_to_run(lambda run: run.log_metrics({"loss": 0.5}, step=1)), outcome=RegistryWorld.runs),
    verb("Run.log_metric", log_to_run(lambda run: run.log_metric("loss", 0.5)), outcome=RegistryWorld.runs),
    verb("Run.set_tags", log_to_run(lambda run: run.set_tags({"a": "b"})), outcome=RegistryWorld.runs),
    verb("Run.log_datasets", log_to_run(lambda run: run.log_datasets(TableSnapshot(name="flights", version=3))), outcome=RegistryWorld.runs),
    verb("Run.log_artifact", log_artifact, check=artifact_is_readable, outcome=RegistryWorld.runs),
    verb("Run.flush", log_to_run(lambda run: run.set_tags({"c": "d"})), outcome=RegistryWorld.runs),
    verb("Run.finish", lambda w: w.registry.get_run(only_run(w)).finish(), outcome=RegistryWorld.runs),
    verb("RunLog.begin", lambda w: RunLog.begin(w.registry, "tries", name="remote"), check=begun, outcome=lambda _: None),
    verb("RunLog.write", segment, outcome=RegistryWorld.runs),
    verb("RunLog.change", lambda w: RunLog.of(w.registry, only_run(w)).change(status="FINISHED", name="named"), outcome=RegistryWorld.runs),
    verb("Access.create_token", lambda w: w.access.create_token("new", "viewer", workspace="shop"), refusals=[AlreadyExists], outcome=RegistryWorld.tokens),
    verb("Access.revoke", lambda w: w.access.revoke("robot"), refusals=[NotFound], outcome=RegistryWorld.tokens),
    verb("Access.create_workspace", lambda w: w.access.create_workspace("more"), refusals=[AlreadyExists], outcome=RegistryWorld.tokens),
    verb("Access.change_workspace", lambda w: w.access.change_workspace("shop", description="text"), outcome=RegistryWorld.tokens),
]  # fmt: skip
