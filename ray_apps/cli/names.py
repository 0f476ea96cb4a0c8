"""Names that the platform does not know: which one was probably meant, and which command lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from ray_apps.cli.client import Client, Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

MLFLOW = "/api/2.0/mlflow"
_SEARCHED = 200  # how many of the newest runs or invocations an unknown ID is compared with
_SHOWN = 8  # names in a message at most


class UnknownName(Exception):  # noqa: N818  # an answer, not an error of ours
    """A name that the platform does not know; the message says which one is like it, and how to list them."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, see: str, place: str = "") -> None:
        super().__init__(f"there is no {kind} {name!r}{place}; {_hint(name, list(known))}`{see}` lists them")


def require_model(client: Client, model: str) -> None:
    """Make sure that the registry has the model. Raises: UnknownName."""
    with known_model(client, model):
        client.get(f"/models/{model}")


@contextmanager
def known_model(client: Client, model: str, version: int | str | None = None) -> Iterator[None]:
    """Turn "not found" within the block into UnknownName where the model, or its version, is what is unknown."""

    def explain(_: Refused) -> None:
        models = names_of(client.get("/models"), "name")
        if model not in models:
            raise UnknownName("model", model, models, see="toque models list")
        if version is None:
            return
        versions = names_of(client.get(f"/models/{model}/versions"), "version")
        known = [*versions, *client.get(f"/models/{model}")["aliases"]]
        if str(version) not in known:
            raise UnknownName(
                "version", str(version), known, see=f"toque models show {model}", place=f" of {model}"
            )

    with _explained(explain):
        yield


@contextmanager
def known_function(client: Client, function: str) -> Iterator[None]:
    """Turn "not found" within the block into UnknownName where the function is what is unknown."""

    def explain(_: Refused) -> None:
        functions = names_of(client.get("/functions"), "name")
        if function not in functions and ":" not in function:
            raise UnknownName("function", function, functions, see="toque functions")

    with _explained(explain):
        yield


@contextmanager
def known_invocation(client: Client, invocation: str) -> Iterator[None]:
    """Turn "not found" within the block into UnknownName for an invocation."""

    def explain(_: Refused) -> None:
        newest = names_of(client.get("/invocations", limit=_SEARCHED), "id")
        if invocation not in newest:
            raise UnknownName("invocation", invocation, newest, see="toque invocations list")

    with _explained(explain):
        yield


@contextmanager
def known_run(client: Client, run: str) -> Iterator[None]:
    """Turn "not found" within the block into UnknownName for a run; files of it that are unknown stay as they are."""

    def explain(_: Refused) -> None:
        asked = {"experiment_ids": names_of(experiments(client), "experiment_id"), "max_results": _SEARCHED}
        found = client.send("POST", f"{MLFLOW}/runs/search", body=asked).json()["runs"]
        newest = [each["info"]["run_id"] for each in found]
        if run not in newest:
            raise UnknownName("run", run, newest, see="toque runs list EXPERIMENT")

    with _explained(explain):
        yield


@contextmanager
def known_among(
    kind: str, name: str, listed: Callable[[], Iterable[str]], *, see: str, place: str = ""
) -> Iterator[None]:
    """Turn "not found" within the block into UnknownName if `name` is not among the names that are listed."""

    def explain(_: Refused) -> None:
        require(kind, name, listed(), see=see, place=place)

    with _explained(explain):
        yield


def require(kind: str, name: str, known: Iterable[str], *, see: str, place: str = "") -> None:
    """Make sure that `name` is among the known ones. Raises: UnknownName."""
    every = list(known)
    if name not in every:
        raise UnknownName(kind, name, every, see=see, place=place)


def experiments(client: Client) -> list[dict[str, Any]]:
    """All experiments, the newest first."""
    found: list[dict[str, Any]] = []
    asked: dict[str, Any] = {"max_results": 1000}
    while True:
        answer = client.send("POST", f"{MLFLOW}/experiments/search", body=asked).json()
        found += answer.get("experiments", [])
        if not answer.get("next_page_token"):
            return found
        asked["page_token"] = answer["next_page_token"]


def names_of(rows: Sequence[dict[str, Any]], field: str) -> list[str]:
    """One field of each row, as text."""
    return [str(each[field]) for each in rows]


@contextmanager
def _explained(explain: Callable[[Refused], None]) -> Iterator[None]:
    try:
        yield
    except Refused as refused:
        # A name with characters that no name may have does not fit the path: that is unknown, too.
        if refused.status in {HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY}:
            _try(explain, refused)
        raise


def _try(explain: Callable[[Refused], None], refused: Refused) -> None:
    """Explain by further requests; where the caller may not make these, the first answer stands. Raises: UnknownName."""
    try:
        explain(refused)
    except Refused:
        return


def _hint(name: str, known: Sequence[str]) -> str:
    """The part of a message that leads from a wrong name to the right one."""
    folded = {each.casefold(): each for each in known}
    close = [folded[each] for each in get_close_matches(name.casefold(), list(folded), n=1)]
    begun = [each for each in known if name and each.startswith(name)][:1]
    if close or begun:
        return f"did you mean {(begun or close)[0]!r}? "
    if 0 < len(known) <= _SHOWN:
        return f"known: {', '.join(known)}; "
    return ""
