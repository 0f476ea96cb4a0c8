"""What goes over the wire, and which failures are worth another try."""

from __future__ import annotations

import email
import email.policy
from typing import Any

import pytest

from tests.functions.alerting.test_decide import HOUR, T0, alarm
from toque.functions.alerting import (
    Alert,
    AlertPolicy,
    Email,
    SinkDownError,
    SinkRefusedError,
    Webhook,
    deliver,
)

POLICY = AlertPolicy(owner="ada", runbook="https://x.example/drift")
NOWHERE = 9  # the port of discard: nobody listens


def alert(**changes: Any) -> Alert:
    one = alarm(text="wind <b>: effect .3 & more", **changes)
    return Alert.of(one, POLICY, key=one.key, at=T0 + HOUR)


def no_secret(_: str) -> None:
    return None


def test_the_generic_shape_says_everything_and_its_key(web: Any) -> None:
    deliver(alert(), Webhook(name="a", url=web.url), no_secret)
    (post,) = web.posts
    assert post["schema"] == "toque.alert/1"
    assert (post["status"], post["severity"], post["owner"]) == ("raised", "warning", "ada")
    assert post["alarm"]["key"] == post["key"] == web.keys[0] == "late/drift/1"
    assert post["runbook"] == "https://x.example/drift"


def test_slack_is_sent_a_message_with_its_characters_escaped(web: Any) -> None:
    sink = Webhook(name="a", url_secret="HOOK", shape="slack")
    deliver(alert(), sink, {"HOOK": web.url}.get)
    (post,) = web.posts
    assert post["text"] == "[WARNING] late: drift/features"
    (attachment,) = post["attachments"]
    assert attachment["text"] == "wind &lt;b&gt;: effect .3 &amp; more"
    assert {one["title"]: one["value"] for one in attachment["fields"]}["owner"] == "ada"


def test_pagerduty_is_sent_a_trigger_and_a_resolve_of_one_incident(web: Any) -> None:
    sink = Webhook(name="a", url=web.url, shape="pagerduty", routing_key_secret="KEY")
    for one in (alert(), alert(key="late/drift/2", recovered=True)):
        deliver(one, sink, {"KEY": "r" * 32}.get)
    first, last = web.posts
    assert [first["event_action"], last["event_action"]] == ["trigger", "resolve"]
    assert first["dedup_key"] == last["dedup_key"] == "late/drift/features"
    assert first["payload"]["severity"] in {"critical", "error", "warning", "info"}
    assert len(first["payload"]["summary"]) <= 1_024
    assert first["links"] == [{"href": "https://x.example/drift", "text": "runbook"}]


def test_a_mail_says_who_and_what_and_has_the_same_id_when_it_comes_twice(post_office: Any) -> None:
    sink = Email(name="a", host="127.0.0.1", port=post_office.port, security="none", sender="toque@x.example",
                 to=("ada@x.example", "bob@x.example"))  # fmt: skip
    for _ in range(2):
        deliver(alert(), sink, no_secret)
    first, second = (email.message_from_string(one, policy=email.policy.default) for one in post_office.mails)
    assert first["Subject"] == "[WARNING] late: drift/features"
    assert first["To"] == "ada@x.example, bob@x.example"
    assert first["Message-ID"] == second["Message-ID"]
    assert "runbook: https://x.example/drift" in first.get_content()


@pytest.mark.parametrize(
    ("status", "error"),
    [(500, SinkDownError), (503, SinkDownError), (429, SinkDownError), (404, SinkRefusedError)],
)
def test_what_may_pass_later_is_told_from_what_never_will(
    web: Any, status: int, error: type[Exception]
) -> None:
    web.answer = status
    with pytest.raises(error, match=f"sink 'a' answered {status}"):
        deliver(alert(), Webhook(name="a", url=web.url), no_secret)


@pytest.mark.parametrize(("code", "error"), [(450, SinkDownError), (550, SinkRefusedError)])
def test_a_mail_server_says_so_by_its_codes(post_office: Any, code: int, error: type[Exception]) -> None:
    post_office.answer = code
    sink = Email(
        name="a", host="127.0.0.1", port=post_office.port, security="none", sender="a@b", to=("c@d",)
    )
    with pytest.raises(error, match=f"sink 'a' answered {code}"):
        deliver(alert(), sink, no_secret)


def test_who_does_not_answer_is_down_and_its_address_is_not_told() -> None:
    hook = f"http://127.0.0.1:{NOWHERE}/services/T0/secret"
    for sink in (
        Webhook(name="a", url_secret="HOOK"),
        Email(name="a", host="127.0.0.1", port=NOWHERE, security="none", sender="a@b", to=("c@d",)),
    ):
        with pytest.raises(SinkDownError, match="sink 'a' does not answer") as failed:
            deliver(alert(), sink, {"HOOK": hook}.get)
        assert "secret" not in str(failed.value)


def test_a_secret_that_is_not_there_is_named_with_its_remedy() -> None:
    with pytest.raises(SinkRefusedError, match="no secret 'HOOK' here; set the variable HOOK"):
        deliver(alert(), Webhook(name="a", url_secret="HOOK"), no_secret)


@pytest.mark.parametrize(
    ("hosts", "sent"),
    [
        (None, True),
        ((), False),
        (("127.0.0.1",), True),
        (("*.0.0.1",), True),
        (("hooks.example.com",), False),
        (("*.example.com",), False),
        (("0.0.1",), False),
    ],
)
def test_alerts_go_to_the_platforms_hosts_alone(
    web: Any,
    hosts: tuple[str, ...] | None,
    sent: bool,  # noqa: FBT001  # of the table above
) -> None:
    def send() -> None:
        deliver(alert(), Webhook(name="a", url=web.url), no_secret, hosts=hosts)

    if sent:
        send()
    else:
        with pytest.raises(SinkRefusedError, match="TOQUE_ALERT_HOSTS"):
            send()
    assert bool(web.posts) is sent
