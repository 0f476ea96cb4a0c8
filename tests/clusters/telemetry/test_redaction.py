"""What must not stand in a log, and what must stay readable."""

from __future__ import annotations

import pytest

from toque.clusters.telemetry.logs import MASK, redact

TOKEN = "tq_0a1b2c3d4e5f_Zm9vYmFyLWJhei1xdXV4LXF1dXV4LWZvbw"
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJlLW9mLWl0"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"refused {TOKEN} of ada", TOKEN),
        (f"Authorization: Bearer {TOKEN}", TOKEN),
        (f"headers={{b'authorization': b'Bearer {JWT}'}}", JWT),
        (f"[(b'authorization', b'Bearer {JWT}'), (b'host', b'x')]", JWT),
        ('{"Authorization": "Basic YWRhOmxvdmVsYWNl", "host": "x"}', "YWRhOmxvdmVsYWNl"),
        ("Proxy-Authorization=Negotiate YIIJvwYGKwYBBQUC", "YIIJvwYGKwYBBQUC"),
        ("authorization: opaque-value-without-scheme", "opaque-value-without-scheme"),
        ("Cookie: theme=dark; session=abcdef0123456789", "abcdef0123456789"),
        ("Error 111 connecting to redis://toque:pa55-word@redis:6379/0", "pa55-word"),
        ("rediss://:only-a-password@redis:6379", "only-a-password"),
        ("GET https://user@host/x", "user@"),
        ("s3://bucket/p?secret_access_key=abcd1234EFGH&region=x", "abcd1234EFGH"),
        ("aws_secret_access_key=wJalrXUtnFEMI/K7MDENG", "wJalrXUtnFEMI/K7MDENG"),
        ("https://x/y?X-Amz-Signature=0123abcd&X-Amz-Date=1", "0123abcd"),
        ("config {'password': 'hunter22', 'user': 'ada'}", "hunter22"),
        ('{\\"api_key\\": \\"k-123456\\"}', "k-123456"),
        (f"a token {JWT} came", JWT),
        ("AKIAIOSFODNN7EXAMPLE has no right to it", "AKIAIOSFODNN7EXAMPLE"),
    ],
)
def test_a_credential_is_masked(text: str, secret: str) -> None:
    found = redact(text)
    assert secret not in found
    assert MASK in found


@pytest.mark.parametrize(
    "text",
    [
        "version 7 of 'late' has no champion that is loaded; try again soon",
        "store file:///work/store is away, http://127.0.0.1:8000/v2/models answers",
        "s3://bucket/toque?region=eu-central-1 has no key models/late/00000001.json",
        "the token of ada has expired; make another with `toque tokens create`",
        "authorization failed for ada",
        "max_tokens=1024, prompt_tokens: 2048",
        "POST /v2/models/late/infer 200 1.2 ms",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


def test_what_stands_beside_a_credential_stays() -> None:
    text = redact("Error 111 connecting to redis://toque:pa55-word@redis:6379/0, user=ada")
    assert text == "Error 111 connecting to redis://***@redis:6379/0, user=ada"


def test_masks_of_others_come_first() -> None:
    assert (
        redact("plate 12 holds cheese", [lambda text: text.replace("cheese", MASK)]) == "plate 12 holds ***"
    )
