"""A store that fails at request k, for every k: no partial state is ever visible, and a retry succeeds."""

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from toque.registry import ModelPolicy, NotFound, ObjectStore, Registry, Stale, Unavailable, open_store
from toque.registry.access import signing

VERBS = {"get", "find", "create", "put", "delete", "list", "upload", "download"}
KEY = ec.generate_private_key(ec.SECP256R1()).private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
NOW = datetime(2013, 1, 1, tzinfo=UTC)


class Failing:
    """A store that fails request number `at`, before or after it took effect."""

    def __init__(self, inner: ObjectStore, at: int, *, after: bool) -> None:
        self.inner, self.at, self.after, self.count = inner, at, after, 0
        self.url = inner.url

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self.inner, name)
        return self._failing(verb) if name in VERBS else verb

    def _failing(self, verb: Callable[..., Any]) -> Callable[..., Any]:
        def request(*args: Any, **kwargs: Any) -> Any:
            number, self.count = self.count, self.count + 1
            if number == self.at and not self.after:
                raise Unavailable(f"request {number} was not answered")
            result = verb(*args, **kwargs)
            result = list(result) if isinstance(result, Iterator) else result
            if number == self.at:
                raise Unavailable(f"request {number} was not answered")
            return iter(result) if isinstance(result, list) else result

        return request


def check_whole(reg: Registry) -> None:
    """Check that all that is visible is complete: every blob of every version, every link of the chain."""
    fresh = Registry(reg.store, actor="auditor")
    for name in fresh.list_models():
        fresh.verify(name)
        assert [version.version for version in fresh.list_versions(name)] == list(
            range(1, len(fresh.list_versions(name)) + 1)
        )


def register(reg: Registry, files: Path) -> None:
    (files / "model.pt2").write_bytes(b"the next weights")
    reg.create_version("m", files, key="run-9")


def promote(reg: Registry, _: Path) -> None:
    try:
        reg.promote("m", 2, expected=1, reason="won")
    except Stale as stale:  # a retry after a lost answer learns that it is done
        if stale.actual != 2:
            raise


def approve(reg: Registry, _: Path) -> None:
    reg.approve("m", 3, comment="fine")


def traffic(reg: Registry, _: Path) -> None:
    reg.set_traffic("m", {"canary": (2, 0.1)}, shadows=[3])


def sign(reg: Registry, _: Path) -> None:
    reg.sign_version("m", 3, KEY)


def create(reg: Registry, _: Path) -> None:
    reg.create_model("other", exist_ok=True)


def collect(reg: Registry, _: Path) -> None:
    reg.collect_garbage(grace=timedelta(0))


def log_run(reg: Registry, _: Path) -> None:
    with reg.start_run("exp", name="r") as run:
        run.log_metric("loss", 0.5)


def after(reg: Registry, action: Callable[[Registry, Path], None]) -> Any:
    """Result of the action, seen by a fresh reader."""
    fresh = Registry(reg.store, actor="auditor")
    state = fresh.get_model("m")
    return {
        register: lambda: [version.key for version in state.versions.values()].count("run-9"),
        promote: lambda: state.aliases["champion"],
        approve: lambda: [approval.actor for approval in state.versions[3].approvals],
        traffic: lambda: (
            state.aliases["champion"],
            [a.share for a in state.split.arms],
            state.split.shadows,
        ),
        sign: lambda: [mark.signer for mark in state.versions[3].signatures],
        create: fresh.list_models,
        collect: lambda: [key for key in reg.store.list("models/m/blobs/") if key.endswith("0" * 64)],
        log_run: lambda: {
            (run.status, run.metrics["loss"]) for run in fresh.search_runs("exp", "status = 'FINISHED'")
        },
    }[action]()


EXPECTED = {
    register: 1,
    promote: 2,
    approve: ["bob"],
    traffic: (1, [0.1], (3,)),
    sign: [signing.fingerprint(signing.public_of(KEY))],
    create: ["m", "other"],
    collect: [],
    log_run: {("FINISHED", 0.5)},
}


@pytest.mark.parametrize("after_effect", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("action", EXPECTED, ids=lambda action: action.__name__)
def test_a_failure_at_any_request_leaves_no_partial_state_and_a_retry_succeeds(
    tmp_path: Path,
    model_files: Path,
    action: Callable[[Registry, Path], None],
    warm: bool,  # noqa: FBT001 - a case
    after_effect: bool,  # noqa: FBT001 - a case
):
    fail_everywhere(
        lambda at: f"file://{tmp_path}/store{at}", model_files, action, warm=warm, after_effect=after_effect
    )


ON_S3 = [
    pytest.param(action, after_effect, marks=() if action is promote and after_effect else pytest.mark.proof)
    for action in (register, promote, approve, collect)
    for after_effect in (False, True)
]


@pytest.mark.parametrize(("action", "after_effect"), ON_S3)
def test_the_same_holds_on_s3(
    s3_endpoint: str,
    model_files: Path,
    action: Callable[[Registry, Path], None],
    after_effect: bool,  # noqa: FBT001 - a case
):
    prefix = uuid.uuid4().hex
    fail_everywhere(
        lambda at: f"s3://toque/{prefix}{at}?endpoint={s3_endpoint}",
        model_files,
        action,
        warm=False,
        after_effect=after_effect,
    )


def fail_everywhere(
    url: Callable[[int], str],
    files: Path,
    action: Callable[[Registry, Path], None],
    *,
    warm: bool,
    after_effect: bool,
) -> None:
    """Fail request 0, then request 1 of a fresh store, and so on, until the action needs no more requests."""
    for at in range(100):
        store = open_store(url(at))
        prepare(store, files)
        failing = Failing(store, -1, after=after_effect)
        actor = Registry(failing, actor="bob", clock=lambda: NOW)
        before = after(actor, action)
        if not warm:
            actor = Registry(failing, actor="bob", clock=lambda: NOW)
        failing.count, failing.at = 0, at
        failed = attempt(actor, action, files)
        failing.at = -1
        reg = Registry(store, actor="bob", clock=lambda: NOW)
        check_whole(reg)
        assert after(reg, action) in (before, EXPECTED[action]), f"request {at}"
        action(actor, files)
        check_whole(reg)
        assert after(reg, action) == EXPECTED[action], f"request {at}"
        if not failed:
            assert at > 0
            return
    pytest.fail("it never ended")


def attempt(reg: Registry, action: Callable[[Registry, Path], None], files: Path) -> bool:
    try:
        action(reg, files)
    except Unavailable:
        return True
    return False


def prepare(store: ObjectStore, files: Path) -> None:
    """Make a model with three versions, the first one champion, and an orphaned file."""
    reg = Registry(store, actor="ada", clock=lambda: NOW)
    reg.create_model("m", policy=ModelPolicy(guarded=frozenset({"champion"}), approvals=0))
    for number in range(3):
        (files / "model.pt2").write_bytes(b"weights %d" % number)
        reg.create_version("m", files)
    reg.set_alias("m", "champion", 1)
    store.put("models/m/blobs/00000000/" + "0" * 64, b"an orphan")


def test_a_model_whose_creation_died_between_its_writes_does_not_exist(folder_store: ObjectStore):
    reg = Registry(Failing(folder_store, 1, after=False), actor="ada")
    folder_store.put("model-names/m", b"")
    assert Registry(folder_store, actor="ada").list_models() == []
    with pytest.raises(NotFound):
        Registry(folder_store, actor="ada").get_model("m")
    with pytest.raises(Unavailable):
        reg.create_model("m")
    reg.create_model("m")
    assert Registry(folder_store, actor="ada").list_models() == ["m"]
