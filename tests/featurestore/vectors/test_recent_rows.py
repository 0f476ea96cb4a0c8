"""Vectors that were just pushed are found at once, whether they went offline, online or both, and however often they change."""

from datetime import timedelta
from typing import Any

import pytest

from toque.featurestore import (
    Entity,
    FeatureStore,
    FeatureView,
    Field,
    InvalidDefinition,
    InvalidRows,
    List,
    Metric,
    String,
    Vector,
    VectorIndex,
)
from toque.featurestore.online.redis_store import RecentKeys

view = FeatureView(
    "pages",
    [Entity("doc")],
    [Field("v", Vector(2)), Field("words", List(String))],
    ttl=timedelta(hours=2),
    indexes=[VectorIndex("v", Metric.L2)],
)


def row(fs: FeatureStore, doc: str, x: float | None, *, minutes: float = 0) -> dict[str, Any]:
    v = None if x is None else [x, 0.0]
    return {"doc": doc, "v": v, "words": [doc], "event_timestamp": fs.now() - timedelta(minutes=minutes)}


def found(fs: FeatureStore, x: float = 0.0, **options: Any) -> list[str]:
    return [key["doc"] for key in fs.search(view, vector=[x, 0.0], **options).keys]


@pytest.mark.parametrize("to", ["both", "online", "offline"])
def test_a_pushed_vector_is_found_at_once_and_replaces_the_one_before(
    fs: FeatureStore, clock: Any, to: Any
) -> None:
    fs.apply([view])
    fs.write_offline(view, [row(fs, "a", 1.0, minutes=5), row(fs, "b", 2.0, minutes=5)])
    assert found(fs) == ["a", "b"]
    fs.push(view, [row(fs, "a", 3.0, minutes=1), row(fs, "c", 2.5, minutes=1)], to=to)
    assert found(fs) == ["b", "c", "a"]
    fs.push(
        view, [row(fs, "b", None), row(fs, "a", 9.0, minutes=4)], to=to
    )  # taken back; and too late to count
    assert found(fs) == ["c", "a"]
    assert fs.search(view, key="c", k=1).found[0].features == {"words": ["a"]}
    clock.now += timedelta(hours=2)
    assert found(fs) == []


def test_rows_pushed_elsewhere_are_found_by_a_store_that_has_searched_before(
    fs: FeatureStore, make_store: Any, redis_url: str
) -> None:
    fs.apply([view])
    fs.push(view, [row(fs, "a", 1.0)])
    assert found(fs) == ["a"]
    other = make_store(redis_url)
    other.push(view, [row(other, "b", 0.5)], to="online")
    assert found(fs, max_age_s=3600) == ["b", "a"]
    assert RecentKeys(fs.online, view).after()[0] == [("a",), ("b",)]
    fs.online.client.delete("toque:default:pages:b")  # as an erasure does
    assert found(fs, max_age_s=0) == ["a"]
    assert found(fs, at=fs.now()) == ["a"]  # what was known offline


def test_what_cannot_be_searched_is_refused(offline_fs: FeatureStore) -> None:
    offline_fs.apply([view])
    assert found(offline_fs) == []
    for ask, told in [
        ({}, "one of vector, key and text"),
        ({"vector": [1.0, float("nan")]}, "not finite"),
        ({"vector": "x"}, "must be Vector"),
        ({"key": {"page": 1}}, r"a key has \['doc'\]"),
        ({"key": 1.5}, "'doc' must be String"),
        ({"text": "x"}, "text_model"),
        ({"vector": [1.0, 1.0], "k": 0}, "k=0"),
        ({"vector": [1.0, 1.0], "where": {"words": "x"}}, "where takes scalars"),
    ]:
        with pytest.raises(InvalidRows, match=told):
            offline_fs.search(view, **ask)  # type: ignore[arg-type]
    plain = FeatureView(
        "plain", [Entity("doc")], [Field("v", Vector(2)), Field("w", Vector(2)), Field("s", String)]
    )
    offline_fs.apply([plain])
    with pytest.raises(InvalidDefinition, match="name the field"):
        offline_fs.search(plain, vector=[1.0, 1.0])
    with pytest.raises(InvalidDefinition, match="'s' is no vector"):
        offline_fs.search(plain, vector=[1.0, 1.0], field="s")
    with pytest.raises(InvalidRows, match="is zero, which has no angle"):
        offline_fs.search(plain, vector=[0.0, 0.0], field="v")
    for wrong in (VectorIndex("s"), VectorIndex("missing")):
        with pytest.raises(InvalidDefinition):
            FeatureView("x", [Entity("doc")], plain.schema, indexes=[wrong])
    with pytest.raises(InvalidDefinition, match="metric 'near' is not known"):
        VectorIndex("v", "near")  # type: ignore[arg-type]
    offline_fs.apply([FeatureView("pages", view.entities, view.schema, ttl=view.ttl)])
    assert offline_fs.get_feature_view("pages").indexes == ()
