"""A disclosed secret is masked in each standard encoding, beside whatever stands around it; other texts stay."""

from __future__ import annotations

import base64
import json
import re
from urllib.parse import quote, quote_plus, urlencode

import pytest

from toque.functions.runtime.secret import MASK, contains_secret, redact, use_secrets

SECRETS = ["p@ss w/rd+42?", "abcd", "naïve-pässword", "k" * 64, 'quo"te\\back', "~~??>>ÿÿ"]
LOOK_ALIKE = "p@ss w/rd+43?"


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("before", ["", "u", "us", "user:", "user-1:"])
@pytest.mark.parametrize("after", ["", "}", "zz", ":x\n"])
def test_base64_at_every_alignment_is_masked(secret: str, before: str, after: str):
    with use_secrets("f", ["S"], lambda _: secret):
        data = (before + secret + after).encode()
        for text in (base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()):
            assert MASK in redact(f"Authorization: Basic {text}"), text
            assert contains_secret(text)
            assert MASK in redact(quote(text, safe=""))


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_base64_of_json_with_the_secret_is_masked(secret: str, *, ascii_only: bool):
    with use_secrets("f", ["S"], lambda _: secret):
        for key in ("k", "ke", "key"):
            document = json.dumps({key: secret, "other": 1}, ensure_ascii=ascii_only)
            assert MASK in redact(base64.b64encode(document.encode()).decode())


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_in_a_url_is_masked_however_it_was_quoted(secret: str):
    with use_secrets("f", ["S"], lambda _: secret):
        spelled = [
            quote(secret),
            quote_plus(secret),
            quote(secret, safe="/:@+?"),
            urlencode({"token": secret}),
        ]
        spelled += [re.sub("%..", lambda match: match[0].lower(), quote(secret, safe=""))]
        for text in (*spelled, secret.encode().hex(), json.dumps({"a": secret})):
            assert secret not in redact(text) or not secret.isascii()
            assert MASK in redact(text), text


def test_texts_that_resemble_a_secret_stay():
    with use_secrets("f", ["S"], lambda _: SECRETS[0]):
        for text in (
            LOOK_ALIKE[:-2],
            quote("p@ss"),
            base64.b64encode(b"user:somebody").decode(),
            "plain text",
        ):
            assert redact(text) == text


ADDRESSES = {
    "percent": ("postgresql://bob:s3cret%zzpw@db.example:5432/wine", ["s3cret%zzpw", "s3cret", "zzpw"]),
    "slash": ("redis://:s3cret/pw/4711@cache.example:6379/0", ["s3cret/pw/4711", "s3cret", "4711"]),
    "at": ("postgresql://bob:s3c@ret99@db.example/wine", ["s3c@ret99", "ret99"]),
    "escaped": ("postgresql://bob:s3cret%2Fpw@db.example/wine", ["s3cret%2Fpw", "s3cret/pw"]),
    "named": ("host=db.example user=bob password=s3cret99 dbname=wine", ["s3cret99"]),
    "argument": ("https://db.example/wine?user=bob&token=s3cret99&ssl=on", ["s3cret99"]),
}


@pytest.mark.parametrize(("address", "pieces"), ADDRESSES.values(), ids=ADDRESSES.keys())
def test_a_password_within_an_address_is_masked_alone_and_cut_by_a_parser(address: str, pieces: list[str]):
    with use_secrets("f", ["S"], lambda _: address):
        for piece in (address, *pieces):
            shown = redact(f'invalid token: "{piece}" of bob at db.example, database wine')
            assert shown == f'invalid token: "{MASK}" of bob at db.example, database wine'
            assert contains_secret(f"x {piece} y")
