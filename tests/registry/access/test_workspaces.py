import pytest

from toque.registry import (
    InvalidInput,
    ObjectStore,
    Registry,
    open_store,
    split_workspace_url,
    workspace_store,
    workspace_url,
)


@pytest.mark.parametrize(
    ("platform", "url"),
    [
        ("file:///data/store", "file:///data/store/workspaces/payments"),
        ("s3://bucket", "s3://bucket/workspaces/payments"),
        (
            "s3://bucket/a?endpoint=http://localhost:9",
            "s3://bucket/a/workspaces/payments?endpoint=http://localhost:9",
        ),
    ],
)
def test_a_workspaces_url_is_below_that_of_the_platform(platform: str, url: str):
    assert workspace_url(platform, "payments") == url
    assert split_workspace_url(url) == (platform, "payments")
    assert workspace_url(platform, "default") == platform
    assert split_workspace_url(platform) == (platform, "default")


@pytest.mark.parametrize("name", ["", "..", "a/b", "Payments", "-a", "a" * 64, "a_b"])
def test_a_malformed_name_is_refused(name: str):
    with pytest.raises(InvalidInput, match="workspace"):
        workspace_url("file:///data/store", name)


def test_models_of_different_workspaces_never_meet(store: ObjectStore):
    payments = Registry(workspace_store(store, "payments"), actor="ada")
    search = Registry(workspace_store(store, "search"), actor="bob")
    default = Registry(workspace_store(store, "default"), actor="root")
    payments.create_model("churn")
    assert (payments.list_models(), search.list_models(), default.list_models()) == (["churn"], [], [])
    again = Registry(open_store(workspace_url(store.url, "payments")), actor="eve")
    assert again.list_models() == ["churn"]
