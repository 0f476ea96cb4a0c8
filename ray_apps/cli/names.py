"""Names that the platform does not know: which one was probably meant, and which command lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from toque.clusters.did_you_mean import did_you_mean
from toque.ray_apps.cli.client import Client, call
from toque.ray_apps.cli.errors import CommandError, Refused

if TYPE_CHECKING:
    from toque.ray_apps.cli.arguments import Given

MLFLOW = "/api/2.0/mlflow"
_SEARCHED = 200  # how many of the newest runs or invocations an unknown ID is compared with
_SHOWN = 8  # names in a message at most

# A name with characters that no name may have does not fit the path, and a function refuses what it does not find.
_MAY_BE_UNKNOWN = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY})


class UnknownName(CommandError):  # noqa: N818  # an answer, not an error of ours
    """A name that the platform does not know; the message says which one is like it, and how to list them."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, see: str, place: str = "") -> None:
        super().__init__(f"there is no {kind} {name!r}{place}; {_hint(name, list(known))}`{see}` lists them")


def require(given: Given, argument: str, *names: str | int) -> None:
    """Make sure that names of the kind that `argument` takes are known. Raises: UnknownName; Refused."""
    kind = KINDS[argument]
    known = list(kind.known(given))
    for name in map(str, names):
        if name not in known:
            see, place = (text.format(model=vars(given).get("model")) for text in (kind.see, kind.place))
            raise UnknownName(kind.word, name, known, see=see, place=place)


def explain(given: Given, refused: Refused) -> None:
    """Look for the reason of a refusal in the names that the command line gave, a model before its version.

    Raises: UnknownName for the first that the platform does not know. Where the caller may not list the names, the
    refusal stands as it is.
    """
    if refused.status not in _MAY_BE_UNKNOWN:
        return
    for argument in KINDS:
        name = vars(given).get(argument)
        names = name if isinstance(name, list) else [] if name is None else [name]
        try:
            if names:
                require(given, argument, *names)
        except Refused:
            return


def require_model(given: Given) -> None:
    """Make sure that the registry has the model; `explain` turns its refusal into UnknownName. Raises: Refused."""
    given.client.get(f"/models/{given.model}")


def ask(given: Given, function: str, **arguments: Any) -> Any:
    """What a function of the platform says of the command's model, which must exist. Raises: Refused."""
    require_model(given)
    return call(given.client, function, {"model": given.model, **arguments})


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


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of name that commands take: its word, what makes the list of the known ones, which command shows them.

    see, place: where the name must be known, as in " of late"; `{model}` stands for the command's model.
    """

    word: str
    known: Callable[[Given], Iterable[str]]
    see: str
    place: str = ""


def _versions(given: Given) -> list[str]:
    versions = _field(given.client.get(f"/models/{given.model}/versions"), "version")
    return [*versions, *given.client.get(f"/models/{given.model}")["aliases"]]


def _functions(given: Given) -> list[str]:
    """The functions, and the name that was given if it is a reference: such a name is not listed."""
    references = [given.function] if ":" in given.function else []
    return [*_field(given.client.get("/functions"), "name"), *references]


def _experiments(given: Given) -> list[str]:
    found = experiments(given.client)
    return list(dict.fromkeys([*_field(found, "experiment_id"), *_field(found, "name")]))


def _monitors(given: Given) -> list[str]:
    """The kinds of alarms there are, and the monitors that have judged the model."""
    alarm = given.client.get("/functions/standing_alarms")["output_schema"]["$defs"]["Alarm"]
    judged = _field(call(given.client, "monitor_status", {"model": given.model}), "monitor")
    return list(dict.fromkeys([*alarm["properties"]["monitor"]["enum"], *judged]))


def _get(path: str, field: str, **query: Any) -> Callable[[Given], list[str]]:
    """What lists a field of the rows at a path of the API."""
    return lambda given: _field(given.client.get(path, **query), field)


def _call(function: str, field: str, **arguments: Any) -> Callable[[Given], list[str]]:
    """What lists a field of the rows that a function gives."""
    return lambda given: _field(call(given.client, function, arguments), field)


def _field(rows: Sequence[dict[str, Any]], field: str) -> list[str]:
    return [str(each[field]) for each in rows]


_OF_MODEL = " of {model}"
_VERSION = Kind("version", _versions, "toque models show {model}", _OF_MODEL)
_RUN = Kind("run", _get("/runs", "id", limit=_SEARCHED), "toque runs list EXPERIMENT")
KINDS = {  # by the name of the argument that takes such a name
    "model": Kind("model", _get("/models", "name"), "toque models list"),
    "version": _VERSION,
    "rivals": _VERSION,
    "function": Kind("function", _functions, "toque functions"),
    "invocation": Kind("invocation", _get("/invocations", "id", limit=_SEARCHED), "toque invocations list"),
    "experiment": Kind("experiment", _experiments, "toque runs experiments"),
    "run": _RUN,
    "runs": _RUN,
    "token": Kind(
        "token",
        lambda given: [each["name"] for each in given.client.get("/tokens") if each["revoked_at"] is None],
        "toque access token list",
    ),
    "chosen": Kind("workspace", _get("/workspaces", "name"), "toque access workspace list"),
    "views": Kind("feature view", _call("feature_health", "view", samples=0), "toque features list"),
    "sources": Kind("batch source", _call("source_status", "source", loads=0), "toque sources"),
    "streams": Kind("stream source", _call("stream_status", "source"), "toque streams list"),
    "layer": Kind("layer", lambda given: given.client.get("/layers"), "toque traffic layer"),
    "holdout": Kind(
        "holdout",
        lambda given: _field(given.client.get(f"/models/{given.model}/traffic")["holdouts"], "name"),
        "toque traffic show {model}",
        _OF_MODEL,
    ),
    "monitor": Kind("monitor", _monitors, "toque monitor status {model}"),
    "alarm": Kind(
        "alarm",
        lambda given: _field(call(given.client, "standing_alarms", {"model": given.model}), "key"),
        "toque monitor incidents {model} -o wide",
        _OF_MODEL,
    ),
    "alert": Kind(
        "alert",
        lambda given: call(given.client, "alert_status", {"model": given.model})["standing"],
        "toque alerts status {model}",
        f"{_OF_MODEL} that stands",
    ),
}


def _hint(name: str, known: Sequence[str]) -> str:
    """The part of a message that leads from a wrong name to the right one."""
    shown = f"known: {', '.join(known)}; " if 0 < len(known) <= _SHOWN else ""
    return did_you_mean(name, known) or shown
