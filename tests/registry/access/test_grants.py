from itertools import product

import pytest

from toque.registry import Grant, InvalidInput, Principal, Role

MODELS = (None, "churn", "fraud")
SPACES = ("default", "payments")


@pytest.mark.parametrize(
    ("role", "included"),
    [
        ("viewer", "viewer"),
        ("caller", "caller"),
        ("labeller", "labeller"),
        ("operator", "viewer caller labeller operator"),
        ("approver", "viewer caller labeller operator approver"),
        ("admin", "viewer caller labeller operator approver admin"),
    ],
)
def test_each_role_includes_exactly(role: str, included: str):
    assert {each.name for each in Role.parse(role).includes} == set(included.split())


def test_the_earlier_name_of_caller_is_accepted():
    assert Role.parse("predictor") is Role.caller
    assert Grant.parse("predictor").model_dump(mode="json")["role"] == "caller"
    with pytest.raises(InvalidInput, match="labeller"):
        Role.parse("king")


@pytest.mark.parametrize("text", ["viewer", "viewer:payments", "caller:*:churn"])
def test_a_grant_is_read_from_text_and_written_as_it(text: str):
    grant = Grant.parse(text)
    assert str(grant) == (text if ":" in text else f"{text}:default")
    assert Grant.model_validate_json(grant.model_dump_json()) == grant


@pytest.mark.parametrize(
    "text", ["", "king", "viewer:", "viewer:Pay", "viewer:a:b:c", "viewer:a:b/c", "labeller:a:churn"]
)
def test_a_malformed_grant_is_refused(text: str):
    with pytest.raises(InvalidInput):
        Grant.parse(text)


def test_a_grant_allows_only_its_workspace_and_model():
    for (workspace, model), (asked, asked_model) in product(product(SPACES, MODELS), repeat=2):
        grant = Grant(role=Role.viewer, workspace=workspace, model=model)
        expected = workspace == asked and model in (None, asked_model)
        assert grant.allows(Role.viewer, asked, asked_model) == expected
        assert grant.covers(Grant(role=Role.viewer, workspace=asked, model=asked_model)) == expected


def test_requests_without_a_workspace_go_to_the_only_one_that_the_grants_reach():
    def workspace(*grants: str) -> str:
        return Principal(name="x", grants=tuple(map(Grant.parse, grants))).workspace

    assert workspace("viewer:payments", "caller:payments:churn") == "payments"
    assert workspace("viewer:payments", "viewer:search") == "default"
    assert workspace("admin:*") == "default"


def test_grants_are_given_only_by_an_admin_of_where_they_reach():
    admin = Principal(name="x", grants=(Grant.parse("admin:payments"),))
    assert admin.may_give((Grant.parse("admin:payments"), Grant.parse("caller:payments:churn")))
    assert not admin.may_give((Grant.parse("viewer:payments"), Grant.parse("viewer:search")))
    assert not admin.may_give((Grant.parse("viewer:*"),))
    assert Principal(name="x", grants=(Grant.parse("admin:*"),)).may_give((Grant.parse("admin:*"),))
