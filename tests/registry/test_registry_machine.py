"""The whole registry against a dictionary model: any sequence of calls, by several actors, cold and warm."""

import tempfile
import uuid
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis.stateful import initialize, invariant, rule, run_state_machine_as_test

from tests.registry.run_rules import ACTORS, RunRules, actors
from toque.registry import ModelPolicy, ModelVersion, NotFound, Refused, Registry, Stale, open_store

ALIASES = ["champion", "candidate"]
versions = st.integers(1, 5)


class RegistryMachine(RunRules):
    """State machine whose `self.model` is a plain dictionary model of the registry."""

    endpoint = ""  # of an S3 server; none: a folder

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(
            "toque.registry.journal.fold.SNAPSHOT_EVERY", 5
        )  # so that most states went through a snapshot
        memory = Path("/dev/shm")  # noqa: S108 - thousands of durable writes are slow on a disk
        self.folder = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
        root = Path(self.folder.name)
        self.files = root / "files"
        self.files.mkdir()
        s3 = f"s3://toque/{uuid.uuid4().hex}?endpoint={self.endpoint}"
        self.url = s3 if self.endpoint else f"file://{root}/store"
        self.warm = {actor: Registry(open_store(self.url), actor=actor) for actor in ACTORS}
        self.model: dict[int, dict[str, Any]] = {}
        self.aliases: dict[str, int] = {}
        self.past: dict[str, list[int]] = {alias: [] for alias in ALIASES}
        self.arms: dict[str, tuple[int, float]] = {}
        self.holdouts: dict[str, float] = {}
        self.guarded = self.gated = False

    def teardown(self) -> None:
        super().teardown()
        self.folder.cleanup()
        self.patch.undo()

    @initialize()
    def create(self) -> None:
        self.warm["ada"].create_model("m")
        for actor in ACTORS:
            self.register(actor, 0)

    @rule(actor=actors, content=st.integers(0, 2))
    def register(self, actor: str, content: int) -> None:
        (self.files / "weights").write_bytes(b"%d" % content)
        version = self.warm[actor].create_version("m", self.files)
        assert version.version == len(self.model) + 1
        self.model[version.version] = {
            "author": actor, "said": {}, "content": content, "deleted": False, "gate": None, "marks": 0, "tags": {}
        }  # fmt: skip

    @rule(guarded=st.sampled_from([False, False, True]), gated=st.booleans())
    def set_policy(self, guarded: bool, gated: bool) -> None:  # noqa: FBT001 - hypothesis names them
        policy = ModelPolicy(
            guarded=frozenset({"champion"} if guarded else set()),
            approvals=1,
            gates=("offline",) if gated else (),
        )
        self.warm["ada"].set_policy("m", policy)
        self.guarded, self.gated = guarded, gated

    @rule(version=versions, passed=st.sampled_from([True, True, False]))
    def judge(self, version: int, passed: bool) -> None:  # noqa: FBT001 - hypothesis names it
        if version in self.model:
            self.warm["bob"].record_gate("m", version, "offline", passed)
            self.model[version]["gate"] = passed

    @rule(actor=actors, version=versions, value=st.sampled_from(["x", "y", None]))
    def tag(self, actor: str, version: int, value: str | None) -> None:
        if version in self.model:
            self.warm[actor].set_version_tags("m", version, {"t": value})
            self.model[version]["tags"] = {} if value is None else {"t": value}

    @rule(actor=actors, version=versions, approved=st.sampled_from([True, True, True, False]))
    def review(self, actor: str, version: int, approved: bool) -> None:  # noqa: FBT001 - hypothesis names it
        reg = self.warm[actor]
        call = reg.approve if approved else reg.reject
        if version not in self.model:
            with pytest.raises(NotFound):
                call("m", version)
        elif approved and self.guarded and self.model[version]["author"] == actor:
            with pytest.raises(Refused, match="may not approve"):
                call("m", version)
        elif not approved and self.model[version]["said"].get(actor) is not False and self.is_live(version):
            with pytest.raises(Refused, match="live"):
                call("m", version)
        else:
            call("m", version)
            self.model[version]["said"][actor] = approved

    @rule(
        actor=actors,
        alias=st.sampled_from(ALIASES),
        version=versions,
        expected=st.just("what it is") | st.none() | versions,
    )
    def set_alias(self, actor: str, alias: str, version: int, expected: int | str | None) -> None:
        if expected == "what it is":
            expected = self.aliases.get(alias)

        def call() -> Any:
            return self.warm[actor].set_alias("m", alias, version, expected=expected)

        if self.refuses(call, version) or self.is_stale(call, alias, expected):
            return
        if self.aliases.get(alias) != version and not self.may_go(alias == "champion", version):
            with pytest.raises(Refused, match="not allowed"):
                call()
            return
        call()
        self.point(alias, version)
        if alias == "champion" and self.past_changed:
            self.arms = {arm: held for arm, held in self.arms.items() if held[0] != version}

    @rule()
    def crown_an_arm(self) -> None:
        for version, _ in list(self.arms.values())[:1]:
            self.set_alias("ada", "champion", version, "what it is")
            event("an arm became champion")

    @rule(actor=actors, version=versions, override=st.sampled_from(["", "", "fire"]))
    def promote(self, actor: str, version: int, override: str) -> None:
        def call() -> Any:
            return self.warm[actor].promote("m", version, override=override)

        if self.refuses(call, version):
            return
        same = self.aliases.get("champion") == version and not self.arms
        forbidden = not same and not self.may_go(True, version)
        if forbidden and not override:
            with pytest.raises(Refused, match="not allowed"):
                call()
            return
        call()
        self.model[version]["marks"] += forbidden
        self.point("champion", version)
        self.arms = {}

    @rule(alias=st.sampled_from(ALIASES))
    def delete_alias(self, alias: str) -> None:
        reg = self.warm["ada"]
        if alias == "champion" and self.arms:
            with pytest.raises(Refused, match="split around"):
                reg.delete_alias("m", alias)
            return
        reg.delete_alias("m", alias)
        if alias in self.aliases:
            self.past[alias].append(self.aliases.pop(alias))

    @rule(alias=st.sampled_from(ALIASES))
    def rollback(self, alias: str) -> None:
        reg = self.warm["cleo"]
        past = self.past[alias]
        usable = [
            i
            for i, number in enumerate(past)
            if self.is_ready(number)
            and number != self.aliases.get(alias)
            and (self.may_go(alias == "champion", number) or self.model[number]["marks"])
        ]
        if not usable:
            with pytest.raises(Refused, match="no earlier version"):
                reg.rollback("m", alias)
            return
        target = past[usable[-1]]
        assert reg.rollback("m", alias).version == target
        self.aliases[alias], self.past[alias] = target, past[: usable[-1]]
        if alias == "champion":
            self.arms = {}

    @rule(version=versions, share=st.sampled_from([0.0, 0.1, 0.5]), arm=st.sampled_from(["a", "b"]))
    def set_traffic(self, version: int, share: float, arm: str) -> None:
        wanted = {**self.arms, arm: (version, share)}
        before = {(name, number): part for name, (number, part) in self.arms.items()}
        # what is there was checked when it was set, and an arm of no units answers nobody
        grown = [number for name, (number, part) in wanted.items() if part > before.get((name, number), 0.0)]

        def call() -> Any:
            return self.warm["bob"].set_traffic("m", wanted)

        if version not in self.model or "champion" not in self.aliases:
            with pytest.raises(NotFound):
                call()
        elif any(not self.is_ready(number) for number, _ in wanted.values()):
            with pytest.raises(Refused):
                call()
        elif not all(self.may_go(True, number) for number in grown):
            with pytest.raises(Refused, match="not allowed"):
                call()
        else:
            call()
            self.arms = wanted

    @rule(actor=actors, name=st.sampled_from(["q3", "q4"]), share=st.sampled_from([0.1, 0.2]))
    def begin_holdout(self, actor: str, name: str, share: float) -> None:
        def call() -> Any:
            return self.warm[actor].begin_holdout("m", name, share)

        if "champion" not in self.aliases:
            with pytest.raises(NotFound):
                call()
        elif self.holdouts.get(name, share) != share or (self.arms and name not in self.holdouts):
            with pytest.raises(Refused):
                call()
        else:
            call()
            self.holdouts[name] = share

    @rule(actor=actors, name=st.sampled_from(["q3", "q4"]))
    def end_holdout(self, actor: str, name: str) -> None:
        if "champion" in self.aliases:
            self.warm[actor].end_holdout("m", name)
            self.holdouts.pop(name, None)

    @rule(version=st.sampled_from([4, 5]))
    def delete(self, version: int) -> None:
        reg = self.warm["bob"]
        if version not in self.model:
            with pytest.raises(NotFound):
                reg.delete_version("m", version)
        elif not self.model[version]["deleted"] and self.is_live(version):
            with pytest.raises(Refused, match="points to it"):
                reg.delete_version("m", version)
        else:
            reg.delete_version("m", version)
            self.model[version]["deleted"] = True

    @rule()
    def collect(self) -> None:
        self.warm["cleo"].collect_garbage()

    @rule(actor=actors)
    def grow_cold(self, actor: str) -> None:
        self.warm[actor] = Registry(open_store(self.url), actor=actor)

    @invariant()
    def agrees(self) -> None:
        for reg in (self.warm["cleo"], Registry(open_store(self.url), actor="auditor")):
            if reg.find_version("m", 1) is None and not self.model:
                continue
            state = reg.get_model("m")
            assert {n: v.author for n, v in state.versions.items()} == {
                n: m["author"] for n, m in self.model.items()
            }
            assert state.aliases == self.aliases
            assert {arm.name: (arm.version, arm.share) for arm in state.split.arms} == self.arms
            assert {each.name: each.share for each in state.holdouts} == self.holdouts
            assert all((v.status == "READY") == self.is_ready(n) for n, v in state.versions.items())
            assert {n: self.facts(v) for n, v in state.versions.items()} == {
                n: (m["said"], m["gate"], m["marks"], m["tags"]) for n, m in self.model.items()
            }

    @invariant()
    def is_sound(self) -> None:
        if self.model:
            self.warm["ada"].verify("m")

    @staticmethod
    def facts(version: ModelVersion) -> tuple[dict[str, bool], bool | None, int, dict[str, str]]:
        """Reviews, gate outcome, number of overrides and tags of a version."""
        said = {approval.actor: approval.approved for approval in version.approvals}
        gate = version.gates["offline"].passed if version.gates else None
        return said, gate, len(version.overrides), version.tags

    past_changed = False

    def point(self, alias: str, version: int) -> None:
        before = self.aliases.get(alias)
        self.past_changed = before != version
        if before is not None and before != version:
            self.past[alias].append(before)
        self.aliases[alias] = version

    def is_ready(self, version: int) -> bool:
        return not self.model[version]["deleted"] and all(self.model[version]["said"].values())

    def is_live(self, version: int) -> bool:
        return version in self.aliases.values() or version in {number for number, _ in self.arms.values()}

    def may_go(self, guarded: bool, version: int) -> bool:  # noqa: FBT001 - a predicate's own
        said = self.model[version]["said"]
        others = [
            actor for actor, approved in said.items() if approved and actor != self.model[version]["author"]
        ]
        judged = not self.gated or self.model[version]["gate"] is True
        return not (guarded and self.guarded) or (bool(others) and judged)

    def refuses(self, call: Any, version: int) -> bool:
        if version not in self.model:
            with pytest.raises(NotFound):
                call()
            return True
        if not self.is_ready(version):
            with pytest.raises(Refused):
                call()
            return True
        return False

    def is_stale(self, call: Any, alias: str, expected: int | None) -> bool:
        if expected == self.aliases.get(alias):
            return False
        with pytest.raises(Stale) as caught:
            call()
        assert caught.value.actual == self.aliases.get(alias)
        return True


def holds(machine: type[RegistryMachine], *, examples: int, steps: int) -> None:
    """Run sequences of calls against the machine."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_any_sequence_of_calls_agrees_with_a_dictionary():
    holds(RegistryMachine, examples=8, steps=30)


@pytest.mark.proof
def test_a_hundred_long_sequences_agree_with_a_dictionary():
    holds(RegistryMachine, examples=100, steps=50)


@pytest.mark.proof
def test_sequences_agree_with_a_dictionary_on_s3(s3_endpoint: str):
    class OnS3(RegistryMachine):
        endpoint = s3_endpoint

    holds(OnS3, examples=4, steps=25)
