"""Layers and holdouts: no unit is in two experiments of a layer under concurrent, killed or stalled writers."""

import contextlib
import threading
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toque.registry import (
    Arm,
    Entry,
    Holdout,
    InvalidInput,
    LayerPart,
    LayerShare,
    NotFound,
    ObjectStore,
    Refused,
    Registry,
    Stale,
    Traffic,
    open_store,
)
from toque.registry.models.state import ModelState, decode, encode, step
from toque.registry.models.traffic import BUCKETS, HOLDOUT, OUTSIDE, allocate, size

MODELS = ("pricing", "ranker", "search")
UNITS = [f"user-{n}" for n in range(2_000)]


def growth(share: float) -> LayerShare:
    return LayerShare(name="growth", share=share)


@pytest.fixture
def reg(tmp_path: Path) -> Registry:
    return with_models(tmp_path, f"file://{tmp_path}/store")


def with_models(folder: Path, url: str) -> Registry:
    """Three models with three versions each, the first one champion."""
    registry = Registry(open_store(url), actor="ada")
    weights = folder / "weights"
    weights.write_text("1")
    for model in MODELS:
        registry.create_model(model)
        for _ in range(3):
            registry.create_version(model, weights)
        registry.set_alias(model, "champion", 1)
    return registry


def used(registry: Registry) -> dict[str, tuple[tuple[int, int], ...]]:
    """Buckets that each model's traffic uses, as a replica reads them."""
    splits = {model: registry.traffic(model) for model in MODELS}
    return {model: split.layer.buckets for model, split in splits.items() if split.layer is not None}


def assert_apart(registry: Registry) -> None:
    """Check that no bucket is used by two models, and that used buckets are claimed."""
    parts, claims = used(registry), registry.layer("growth")
    owners = Counter(bucket for spans in parts.values() for a, b in spans for bucket in range(a, b))
    assert all(count == 1 for count in owners.values())
    for model, spans in parts.items():
        claimed = {bucket for a, b in claims[model].buckets for bucket in range(a, b)}
        assert claimed.issuperset(bucket for a, b in spans for bucket in range(a, b))


def in_experiment(split: Traffic, unit: str) -> bool:
    return split.layer is not None and split.assign(unit).name not in (OUTSIDE, HOLDOUT)


moves = st.tuples(
    st.sampled_from(MODELS),
    st.sampled_from(["split", "split", "shadow", "promote", "rollback", "end", "crown", "cold"]),
    st.sampled_from([0.1, 0.3, 0.5, 0.7, 1.0]),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)


def move(registry: Registry, model: str, what: str, part: float, share: float) -> None:
    if what == "split":
        registry.set_traffic(model, {"canary": (2, share)}, layer=growth(part))
    elif what == "shadow":
        registry.set_traffic(model, {}, shadows=[3], layer=growth(part))
    elif what == "end":
        registry.set_traffic(model, {})
    elif what == "promote":
        registry.promote(model, 3 if part < 0.5 else 1)
    elif what == "crown":
        registry.set_alias(model, "champion", 2)
    elif what == "rollback":
        registry.rollback(model)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(history=st.lists(moves, min_size=1, max_size=14))
def test_no_unit_is_ever_in_two_experiments_of_a_layer(
    history: list[tuple[str, str, float, float]], tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("layers")
    registry = with_models(folder, f"file://{folder}/store")
    for model, what, part, share in history:
        if what == "cold":
            registry = Registry(registry.store, actor="bob")
            continue
        with contextlib.suppress(Refused):
            move(registry, model, what, part, share)
        assert_apart(registry)
    splits = [registry.traffic(model) for model in MODELS]
    for unit in UNITS[:200]:
        assert sum(in_experiment(split, unit) for split in splits) <= 1
    claims = registry.layer("growth")
    assert set(claims) == set(used(registry))  # nothing is left over where nobody was killed


@settings(max_examples=50, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, BUCKETS // 4), st.integers(0, BUCKETS // 3)), min_size=1, max_size=5
    ),
    others=st.integers(0, BUCKETS // 4),
)
def test_raising_shares_moves_no_unit_of_an_arm(steps: list[tuple[int, int]], others: int):
    part, arm = BUCKETS // 10, 0
    layer = allocate({}, {"other": others, "mine": part})
    arms = allocate({}, {"canary": arm})

    def split() -> Traffic:
        first = Arm(name="champion", version=1, share=1 - arm / BUCKETS)
        canary = Arm(name="canary", version=2, share=arm / BUCKETS, buckets=arms["canary"])
        mine = LayerPart(name="growth", claim=0, buckets=layer["mine"])
        return Traffic(arms=(first, canary), salt="ranker/5", layer=mine)

    before = {unit: split().assign(unit).name for unit in UNITS[:300]}
    for more_part, more_arm in steps:
        part, arm = min(part + more_part, BUCKETS - others), min(arm + more_arm, BUCKETS)
        layer = allocate(layer, {"other": others, "mine": part})
        arms = allocate(arms, {"canary": arm})
        after = {unit: split().assign(unit).name for unit in UNITS[:300]}
        for unit, name in before.items():
            assert name != "canary" or after[unit] == "canary"
            assert name != "champion" or after[unit] != OUTSIDE
        before = after


@settings(max_examples=50, deadline=None)
@given(
    holdouts=st.dictionaries(st.sampled_from(["q3", "q4"]), st.floats(0.01, 0.5), max_size=2),
    canary=st.integers(0, BUCKETS),
    part=st.integers(1, BUCKETS),
    champion=st.integers(1, 9),
)
def test_the_champion_always_answers_held_out_units(
    holdouts: dict[str, float], canary: int, part: int, champion: int
):
    held = tuple(Holdout(name=name, share=share) for name, share in holdouts.items())
    split = Traffic(
        arms=(
            Arm(name="champion", version=champion, share=1 - canary / BUCKETS),
            Arm(name="canary", version=10, share=canary / BUCKETS, buckets=allocate({}, {"c": canary})["c"]),
        ),
        salt="m/1",
        layer=LayerPart(name="growth", claim=0, buckets=((BUCKETS - part, BUCKETS),)),
        holdouts=held,
    )
    for unit in UNITS[:100]:
        arm = split.assign(unit)
        assert (arm.name == HOLDOUT) == any(one.holds(unit) for one in held)
        assert arm.name == "canary" or arm.version == champion
        assert Traffic.model_validate_json(split.model_dump_json()).assign(unit) == arm


def test_two_layers_a_holdout_and_an_experiment_are_independent():
    units = [f"user-{n}" for n in range(100_000)]
    half = ((0, BUCKETS // 2),)
    one, two = (
        Traffic(
            arms=(
                Arm(name="champion", version=1, share=0.5),
                Arm(name="a", version=2, share=0.5, buckets=half),
            ),
            salt=salt,
            layer=LayerPart(name=layer, claim=0, buckets=half),
        )
        for salt, layer in (("ranker/5", "growth"), ("pricing/5", "looks"))
    )
    first, second = ([split.assign(unit).name for unit in units] for split in (one, two))
    held = [Holdout(name="q4", share=0.5).holds(unit) for unit in units]
    pairs = {
        "layers": ([a != OUTSIDE for a in first], [b != OUTSIDE for b in second], 0.25),
        "arms": ([a == "a" for a in first], [b == "a" for b in second], 0.0625),
        "layer and experiment": ([a == "a" for a in first], [True] * len(units), 0.25),
        "layer and holdout": ([a != OUTSIDE for a in first], held, 0.25),
    }
    for what, (a, b, p) in pairs.items():
        both = sum(x and y for x, y in zip(a, b, strict=True))
        # Under independence Binomial(100 000, p); 4 standard errors
        assert abs(both - 100_000 * p) <= 4 * sqrt(100_000 * p * (1 - p)), what


def test_the_shares_of_arms_are_of_the_layers_part_less_those_held_out(reg: Registry):
    reg.begin_holdout("ranker", "q4", 0.1)
    split = reg.set_traffic("ranker", {"canary": (2, 0.25)}, layer=growth(0.4))
    counts = Counter(split.assign(f"user-{n}").name for n in range(20_000))
    assert split.reach == pytest.approx(0.36)
    expected = {HOLDOUT: 0.1, OUTSIDE: 0.54, "canary": 0.09, "champion": 0.27}
    assert split.chances() == pytest.approx(expected)
    for name, share in expected.items():
        # Binomial(20 000, share); 4 standard errors
        assert abs(counts[name] - 20_000 * share) <= 4 * sqrt(20_000 * share * (1 - share))


def test_two_models_cannot_have_the_same_part_and_an_end_frees_it(reg: Registry):
    reg.set_traffic("ranker", {"canary": (2, 0.1)}, layer=growth(0.6))
    with pytest.raises(
        Refused, match=r"'growth' has 40.00% left and pricing wants 60.00% of it: ranker 60.00%"
    ):
        reg.set_traffic("pricing", {"canary": (2, 0.1)}, layer=growth(0.6))
    assert reg.traffic("pricing").layer is None
    reg.promote("ranker", 2)
    assert reg.layer("growth") == {}
    assert reg.set_traffic("pricing", {"canary": (2, 0.1)}, layer=growth(0.6)).layer.share == 0.6
    assert reg.list_layers() == ["growth"]


@pytest.mark.parametrize("end", ["promote", "crown", "rollback", "end"])
def test_every_end_releases_the_layer_part_also_from_a_cold_start(reg: Registry, end: str):
    reg.set_alias("ranker", "champion", 3)
    reg.set_traffic("ranker", {"canary": (2, 0.1)}, layer=growth(0.6))
    move(Registry(reg.store, actor="bob"), "ranker", end, 0.9, 0.0)
    assert reg.layer("growth") == {}
    assert reg.traffic("ranker").layer is None


def test_a_part_grows_and_does_not_shrink_or_change_while_arms_answer(reg: Registry):
    reg.set_traffic("ranker", {"canary": (2, 0.1)}, layer=growth(0.3))
    reg.set_traffic("pricing", {"canary": (2, 0.1)}, layer=growth(0.3))
    before = reg.traffic("ranker")
    after = reg.set_traffic("ranker", {"canary": (2, 0.1)}, layer=growth(0.5))
    assert size(after.layer.buckets) == 5_000
    assert all(after.assign(u).name == before.assign(u).name for u in UNITS if in_experiment(before, u))
    for wanted in (growth(0.2), LayerShare(name="looks", share=0.9), None):
        with pytest.raises(Refused, match="can only grow"):
            reg.set_traffic("ranker", {"canary": (2, 0.1)}, layer=wanted)
    assert reg.traffic("ranker") == after
    assert reg.layer("looks") == {}


def test_writers_who_race_for_a_layer_never_share_a_bucket(reg: Registry):
    refused: list[str] = []

    def claim(model: str) -> None:
        own = Registry(open_store(reg.store.url), actor=model)
        try:
            own.set_traffic(model, {"canary": (2, 0.5)}, layer=growth(0.5))
        except Refused:
            refused.append(model)

    for _ in range(4):
        refused.clear()
        threads = [threading.Thread(target=claim, args=(model,)) for model in MODELS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(used(reg)) == 2
        assert len(refused) == 1
        assert_apart(reg)
        for model in MODELS:
            reg.set_traffic(model, {})
        assert reg.layer("growth") == {}


class Killed(BaseException):
    """Simulated kill, which no handler catches."""


class KillingStore:
    """A store that kills its caller before, or after, the n-th write."""

    def __init__(self, store: ObjectStore, writes: int, *, after: bool) -> None:
        self._store, self._left, self._after = store, writes, after

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        return self._killing(found) if name in ("create", "put") else found

    def _killing(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def dying(*args: Any) -> Any:
            self._left -= 1
            if self._left < 0 and not self._after:
                raise Killed
            done = write(*args)
            if self._left < 0:
                raise Killed
            return done

        return dying


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("change", ["split", "grow", "promote", "retake"])
def test_a_writer_killed_at_any_write_leaves_layers_consistent(reg: Registry, change: str, after: bool):  # noqa: FBT001
    reg.set_traffic("search", {"canary": (2, 0.1)}, layer=growth(0.2))
    if change in ("grow", "promote"):
        reg.set_traffic("ranker", {"canary": (2, 0.1)}, layer=growth(0.3))
    if change == "retake":
        reg.claim("pricing", growth(0.8))  # and died

    def act(registry: Registry) -> None:
        if change == "promote":
            registry.promote("ranker", 3)
        else:
            registry.set_traffic("ranker", {"canary": (2, 0.1)}, layer=growth(0.7))

    writes, died = 0, True
    while died:
        registry = Registry(KillingStore(reg.store, writes, after=after), actor="mortal")  # type: ignore[arg-type]
        try:
            act(registry)
            died = False
        except Killed:
            writes += 1
        assert_apart(reg)
        reg.set_traffic(
            "pricing", {}, shadows=[3], layer=growth(0.05) if used(reg).get("ranker") else growth(0.1)
        )
        reg.set_traffic("pricing", {})
        assert_apart(reg)
    assert writes >= 1
    act(reg)
    ranker = used(reg).get("ranker")
    assert (ranker is None) if change == "promote" else (size(ranker) == 7_000)
    reg.set_traffic("ranker", {})
    assert reg.set_traffic("pricing", {"canary": (2, 0.1)}, layer=growth(0.8)).layer.share == 0.8
    assert_apart(reg)


def test_a_stalled_writer_finds_that_its_claim_was_revoked(reg: Registry, monkeypatch: pytest.MonkeyPatch):
    sleeper = Registry(reg.store, actor="sleeper")
    whole = sleeper._change_and_release

    def asleep(model: str, decide: Any) -> Any:
        monkeypatch.setattr(sleeper, "_change_and_release", whole)
        reg.set_traffic(
            "pricing", {"canary": (2, 0.1)}, layer=growth(0.7)
        )  # takes the claim back: it needs the room
        return whole(model, decide)

    monkeypatch.setattr(sleeper, "_change_and_release", asleep)
    with pytest.raises(Refused, match=r"30.00% left"):
        sleeper.set_traffic("ranker", {"canary": (2, 0.1)}, layer=growth(0.6))
    assert_apart(reg)
    assert list(reg.layer("growth")) == ["pricing"]


def test_a_holdout_outlives_rollouts_until_it_is_ended(reg: Registry):
    for model in ("ranker", "pricing"):
        reg.begin_holdout(model, "q4", 0.2, reason="what do we ship?")
    held = {unit for unit in UNITS if reg.traffic("ranker").assign(unit).name == HOLDOUT}
    # Binomial(2 000, .2); 4 standard errors
    assert abs(len(held) - 400) <= 4 * sqrt(2_000 * 0.2 * 0.8)
    for version in (2, 3):
        reg.set_traffic("ranker", {"canary": (version, 0.5)})
        reg.set_traffic("pricing", {"canary": (version, 0.5)}, layer=growth(0.5))
        for model in ("ranker", "pricing"):
            split = Registry(reg.store, actor="replica").traffic(model)
            assert {unit for unit in UNITS if split.assign(unit).name == HOLDOUT} == held
            assert all(split.assign(unit).version == split.champion.version for unit in held)
            reg.promote(model, version)
    reg.rollback("ranker")
    assert reg.traffic("ranker").holdouts == (Holdout(name="q4", share=0.2),)
    assert reg.end_holdout("ranker", "q4").is_whole
    entry = reg.traffic("ranker").entry
    assert reg.end_holdout("ranker", "q4").entry == entry  # an absent one is fine, and no entry
    assert not reg.traffic("pricing").is_whole


def test_bad_holdouts_are_refused_with_the_remedy(reg: Registry):
    for share in (-0.1, 0.0, 0.00001, 1.0, float("nan")):
        with pytest.raises(InvalidInput, match="q4"):
            reg.begin_holdout("ranker", "q4", share)
    with pytest.raises(InvalidInput, match="is not a name"):
        reg.begin_holdout("ranker", "a/b", 0.1)
    with pytest.raises(NotFound):
        reg.begin_holdout("nothing", "q4", 0.1)
    reg.begin_holdout("ranker", "q4", 0.1)
    assert reg.begin_holdout("ranker", "q4", 0.1) == reg.traffic("ranker")
    with pytest.raises(Refused, match=r"holds out 10.00% as 'q4' already"):
        reg.begin_holdout("ranker", "q4", 0.2)
    reg.set_traffic("pricing", {"canary": (2, 0.1)})
    with pytest.raises(Refused, match="between experiments"):
        reg.begin_holdout("pricing", "q4", 0.1)
    for name in (HOLDOUT, OUTSIDE):
        with pytest.raises(InvalidInput, match="choose another name"):
            reg.set_traffic("search", {name: (2, 0.1)})
    with pytest.raises(NotFound):
        reg.set_traffic("nothing", {"canary": (2, 0.1)}, layer=growth(0.1))
    assert reg.layer("growth") == {}


def test_an_expected_entry_holds_in_a_layer_too_and_leaves_no_claim(reg: Registry):
    with pytest.raises(Stale, match="expected 999"):
        reg.set_traffic("ranker", {"canary": (2, 0.1)}, layer=growth(0.5), expected=999)
    assert reg.layer("growth") == {}


def test_layers_and_holdouts_survive_a_snapshot(reg: Registry):
    reg.begin_holdout("ranker", "q4", 0.1)
    reg.set_traffic("ranker", {"canary": (2, 0.1)}, layer=growth(0.5))
    reg.set_traffic("ranker", {})
    reg.set_traffic("ranker", {"canary": (2, 0.1)}, layer=growth(0.5))
    state = reg.get_model("ranker")
    assert state.revoked_claims
    assert decode("ranker", encode(state)) == state


def test_entries_older_than_layers_are_still_read():
    state = ModelState(name="m", aliases={"champion": 1})
    body = {
        "kind": "traffic", "reason": "", "salt": "m/7", "shadows": [3],
        "arms": [{"name": "canary", "version": 2, "share": 0.1, "buckets": [[0, 1000]]}],
    }  # fmt: skip
    before = step(state, Entry(number=7, body=body, actor="ada", at=None, txn="", previous="")).traffic  # type: ignore[arg-type]
    assert (before.layer, before.holdouts, before.reach) == (None, (), 1.0)
    old = {"arms": [arm.model_dump() for arm in before.arms], "shadows": [3], "salt": "m/7", "entry": 7}
    assert Traffic.model_validate(old) == before
    canaries = [n for n in range(30) if before.assign(f"user-{n}").name == "canary"]
    assert canaries == [0, 18, 26]  # as the release of before assigned them


def test_every_pair_of_models_in_a_layer_is_disjoint(reg: Registry):
    for model in MODELS:
        reg.set_traffic(model, {"a": (2, 0.5), "b": (3, 0.5)}, layer=growth(0.33))
    parts = used(reg)
    for one, two in combinations(MODELS, 2):
        assert all(b <= c or d <= a for a, b in parts[one] for c, d in parts[two])
    assert all(reg.traffic(model).champion.share == 0 for model in MODELS)
