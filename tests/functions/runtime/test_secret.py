"""Secrets reach the body that declares them, and are kept out of all that is recorded."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest

from toque.functions import Context, Retries, call, context, function, use_context
from toque.functions.runtime.errors import (
    DeclarationError,
    InvocationFailed,
    MissingSecret,
    RemoteError,
    SecretLeaked,
    UndeclaredSecret,
)
from toque.functions.runtime.secret import redact
from toque.functions.runtime.triggers.events import publish

VALUE = "s3cr3t/väl=ue with 'quotes'"


@function(secrets=("API_KEY",))
def length() -> int:
    return len(context().secret("API_KEY"))


@function(secrets=("API_KEY",))
async def length_later() -> int:
    return len(context().secret("API_KEY"))


@function(secrets=("API_KEY",))
def lengths(n: int) -> Iterator[int]:
    for _ in range(n):
        yield len(context().secret("API_KEY"))


@function(secrets=("API_KEY",), retries=Retries(2, backoff_s=0.01))
def blurt() -> int:
    key = context().secret("API_KEY")
    print("the key is", key)  # noqa: T201
    raise ValueError(f"refused with {key} and {json.dumps(key)} and {quote(key, safe='')}")


@function(secrets=("API_KEY",))
def give_away() -> dict[str, str]:
    return {"key": context().secret("API_KEY")}


@function
def peek() -> str:
    return context().secret("API_KEY")


@function
def outer() -> int:
    return call(length)


@function(secrets=("API_KEY",))
def outer_that_knows() -> str:
    context().secret("API_KEY")
    return call(peek)


@function(secrets=("API_KEY",))
def pass_on() -> str:
    return echo.submit(context().secret("API_KEY")).id


@function(secrets=("API_KEY",))
def announce() -> int:
    return publish("alarms", {"key": context().secret("API_KEY")})


@function
def echo(text: str) -> str:
    return text


@pytest.fixture
def known(used: Context, tmp_path: Path, backend: str) -> Iterator[Context]:
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "API_KEY").write_text(f"{VALUE}\n")
    with use_context(replace(used, secrets_dir=str(folder))) as at:
        yield at


@pytest.fixture
def stored(used: Context) -> Callable[[], str]:
    """Read everything in the store as text."""
    root = Path(used.store_url.removeprefix("file://"))
    return lambda: "\n".join(each.read_text() for each in root.rglob("*") if each.is_file())


@pytest.mark.usefixtures("known")
def test_a_declared_secret_is_available_in_every_kind_of_run() -> None:
    assert length() == length.remote().result(60) == length.submit().result(60) == len(VALUE)
    assert length_later.remote().result(60) == len(VALUE)
    assert outer.submit().result(60) == len(VALUE)
    assert lengths.remote(2).result(60) == list(lengths(2)) == [len(VALUE)] * 2


@pytest.mark.usefixtures("known")
async def test_a_coroutine_has_its_secrets() -> None:
    assert await length_later() == len(VALUE)


@pytest.mark.usefixtures("used", "backend")
def test_a_missing_secret_raises_at_the_call_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("API_KEY", raising=False)
    with pytest.raises(MissingSecret, match=r"length needs the secret API_KEY.*environment.*TOQUE_SECRETS"):
        length()
    with pytest.raises(MissingSecret, match="API_KEY"):
        length.remote().result(60)
    with pytest.raises(InvocationFailed, match="MissingSecret: length needs the secret API_KEY"):
        length.submit().result(60)


def test_a_secret_is_read_from_the_environment_and_must_be_long_enough(
    used: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", "12345")
    assert length() == 5
    monkeypatch.setenv("API_KEY", "123")
    with pytest.raises(MissingSecret, match="at least 4"):
        length()


@pytest.mark.usefixtures("known")
def test_an_undeclared_secret_is_refused_in_a_callee_too() -> None:
    with pytest.raises(UndeclaredSecret, match=r'secrets=\("API_KEY",\)'):
        peek.remote().result(60)
    with pytest.raises(UndeclaredSecret):
        outer_that_knows.remote().result(60)


def test_errors_tracebacks_and_logs_are_recorded_without_the_secret(
    known: Context, stored: Callable[[], str]
) -> None:
    with pytest.raises(RemoteError, match=r"ValueError: refused with \*\*\* and") as caught:
        blurt.remote().result(60)
    assert VALUE not in str(caught.value)
    invocation = blurt.submit()
    with pytest.raises(InvocationFailed):
        invocation.result(60)
    failure = invocation.record().failure
    assert failure is not None
    assert "in blurt" in failure.traceback
    text = stored()
    assert "the key is ***" in text
    for spelled in (VALUE, "s3cr3t", quote(VALUE, safe="")):
        assert spelled not in text


def test_results_and_arguments_with_a_secret_are_refused_and_not_stored(
    known: Context, stored: Callable[[], str]
) -> None:
    with pytest.raises(SecretLeaked, match="result of give_away holds the secret API_KEY"):
        give_away.remote().result(60)
    with pytest.raises(InvocationFailed, match="SecretLeaked"):
        give_away.submit().result(60)
    with pytest.raises(InvocationFailed, match="SecretLeaked"):
        pass_on.submit().result(60)
    with pytest.raises(SecretLeaked, match="an event of alarms"):
        announce.remote().result(60)
    assert "s3cr3t" not in stored()


@pytest.mark.usefixtures("known")
def test_output_of_a_run_masks_its_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RemoteError):
        blurt.call_json({})
    assert capsys.readouterr().out == "the key is ***\n"


@pytest.mark.usefixtures("known")
def test_a_secret_that_was_never_disclosed_is_not_masked() -> None:
    assert redact("plain text") == "plain text"


def test_secret_names_that_leave_the_folder_are_refused() -> None:
    with pytest.raises(DeclarationError, match="is not a name"):

        @function(secrets=("../etc/passwd",))
        def f(a: int) -> int:
            return a
