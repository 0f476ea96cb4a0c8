"""`toque init` and `toque train`: from a file to a project, and from its tables to a version that was judged."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from toque.ray_apps.cli.arguments import Commands, Given, add, arg, find_project_here, flag, repeatable
from toque.ray_apps.cli.errors import Failed, UsageError
from toque.ray_apps.cli.output import columns, message, note, say, table, value

if TYPE_CHECKING:
    from toque.functions.project import ModelDefinition, Project
    from toque.functions.retraining.by_hand import TrainedByHand
    from toque.ray_apps.local import Settings
    from toque.ray_apps.new_project import Draft, Finding, Wishes


# toque.ray_apps.new_project and `functions` are imported by the commands that need them: they bring polars and Ray.

_GUESSES = columns("role | taken as: value | because: reason | to change it: option", texts="because")
_LISTED = 20  # findings that are shown

_INIT = (
    arg("name", "name of the project: its folder, its package and its model"),
    arg(
        "--from FILE",
        "a CSV, TSV or Parquet file, or an SQLite database as in sqlite:///data.db",
        dest="source",
    ),
    arg("--query SQL", "which rows of a database (default: its only table)", default=""),
    arg("--label COLUMN", "what the model predicts (default: guessed)"),
    repeatable("--key COLUMN", "what identifies a row, or `row` for its number (default: guessed)"),
    arg("--time COLUMN", "when a row was known, or `none` (default: guessed)"),
    arg(
        "--outcome",
        "what the label is (default: guessed)",
        choices=["binary", "multiclass", "multilabel", "number", "count", "ranking", "vector"],
    ),
    arg("--group COLUMN", "of a ranking, what names the request of a row (default: guessed)"),
    arg("--positive VALUE", "which of a label's two values counts as 1 (default: guessed)"),
    repeatable("--drop COLUMN", "leave a column out of the features"),
    repeatable("--keep COLUMN", "keep a column that was left out"),
    repeatable("--text COLUMN", "take a column as texts, even if it looks like numbers"),
    repeatable("--null WORD", "a further word for a missing value"),
    arg("--encoding NAME", "of a CSV file (default: %(default)s)", default="utf-8"),
    flag("--yes", "take the guesses as they are, without asking"),
)
_MODEL = arg("model", "name of the model (default: the project's only one)", nargs="?")
_PROJECT = arg(
    "--project MODULE", "module of your definitions (default: TOQUE_PROJECT, else that of this folder)"
)
_NO_LOAD = flag(
    "--no-load", "train on the tables as they are: neither the project's `load` nor its sources are read"
)
_PROMOTE = flag(
    "--promote", "make the version the champion if it passes its gate and the model's policy allows it"
)


def register(commands: Commands) -> None:
    """Add the commands `init` and `train` to those of `toque`."""
    add(commands, "init", _init, *_INIT)
    add(commands, "train", _train, _MODEL, _PROJECT, _NO_LOAD, _PROMOTE)


def _init(given: Given) -> None:
    """Make a project of a table: a small package with features, a model, a loading step and a test."""
    from toque.ray_apps.new_project import (
        InitError,
        check_absent,
        check_project_name,
        code_lines,
        pages,
        write_project,
    )

    try:
        folder = Path.cwd() / check_project_name(given.name)
        check_absent(folder)
        draft = _agreed(given)
        files = pages(draft)
        write_project(folder, files)
    except InitError as error:
        raise Failed(str(error)) from error
    where = {"folder": str(folder), "files": sorted(files), "code_lines": code_lines(files)}
    text = f"made {folder.name}/ with {len(files)} files and {where['code_lines']} lines of code; next: cd {folder.name} && toque train"
    message(given.output, text, where)


def _agreed(given: Given) -> Draft:
    """Draft a project, and have a person at a terminal correct it. Raises: InitError; Failed."""
    from toque.ray_apps.new_project import Reading, Source, Wishes, draft_of

    if not given.source:
        raise UsageError(
            "which table? give --from with a CSV, Parquet or SQLite file, as in --from houses.csv"
        )
    source = Source.of(given.source, query=given.query, encoding=given.encoding)
    reading = Reading(tuple(given.drop), tuple(given.keep), tuple(given.text), tuple(given.null))
    keys = tuple(name for each in given.key for name in each.split(","))
    wishes = Wishes(given.label, keys, given.time, given.outcome, given.positive, given.group)
    while True:
        draft = draft_of(given.name, source, wishes, reading)
        if isinstance(draft, list):
            _refuse(draft)
        _show(given, draft)
        corrected = None if given.yes or not sys.stdin.isatty() else _corrected(draft, wishes)
        if corrected is None:
            if draft.checked.refused:
                _refuse(draft.checked.refused)
            return draft
        wishes = corrected


def _show(given: Given, draft: Draft) -> None:
    """Show the guesses and what was found, on standard error beside JSON."""
    speak = note if given.output == "json" else say
    found = draft.found
    speak(f"{draft.source.name}: {found.rows:,} rows, {len(found.columns)} columns")
    if given.output != "json":
        table(given.output, _GUESSES, [asdict(each) for each in draft.roles.guesses])
    checked = draft.checked
    speak(f"features: {', '.join((*checked.numeric, *checked.categorical)) or 'none'}")
    for each in checked.findings:
        if not each.refused:
            speak(f"note: {each}")


def _refuse(findings: list[Finding]) -> NoReturn:
    """Print every finding that makes a project impossible, a line each. Raises: Failed."""
    for each in findings[:_LISTED]:
        note(f"refused: {each}")
    more = f", of which {_LISTED} are shown" if len(findings) > _LISTED else ""
    raise Failed(f"no project was made: {len(findings)} finding(s) must be mended first{more}")


def _corrected(draft: Draft, wishes: Wishes) -> Wishes | None:
    """Ask for each guess whether it is right; None if all are."""
    answers: dict[str, Any] = {}
    for each in draft.roles.guesses:
        answer = _ask(f"{each.role} [{each.value}]: ")
        if answer and answer != each.value:
            answers[each.role] = tuple(answer.split(",")) if each.role == "key" else answer
    return replace(wishes, **answers) if answers else None


def _ask(question: str) -> str:
    sys.stderr.write(question)
    sys.stderr.flush()
    return sys.stdin.readline().strip()


def _train(given: Given) -> int:
    """Load a project's tables, train and judge a version of its model here, and say what is next."""
    os.environ.update(_platform_environment(Path(given.home).expanduser().resolve()))
    module = given.project or os.environ.get("TOQUE_PROJECT")
    if not module:
        raise UsageError(
            "there is no project here; go to its folder, make one by `toque init NAME --from FILE`, or give --project"
        )
    os.environ["TOQUE_PROJECT"] = module
    find_project_here()
    with _explained():
        from toque.functions.project import load_project
        from toque.functions.retraining.by_hand import train_by_hand

        definition = _chosen(load_project(module), given.model)
        if not given.no_load:
            _load(module)
            _refresh(definition.service)
        note(f"training {definition.name}")
        done = train_by_hand(definition, definition.governance)
        if definition.service is not None:
            _put_online(definition.service)
        refused = _promote(done) if given.promote and done.gate.passed else None
    _tell(given, definition, done, live=given.promote and done.gate.passed and refused is None)
    if refused is not None:
        raise Failed(refused)
    return 0 if done.gate.passed else 1


def _platform_environment(home: Path) -> dict[str, str]:
    """Variables of the platform in a state folder, whether it runs or not; those that are set already stand before them."""
    from toque.ray_apps.local import Settings
    from toque.ray_apps.local.status import status

    running = status(home).running
    settings = Settings.of(os.environ, home=home) if running is None else running.settings
    found = {
        "TOQUE_STORE": settings.store_url,
        "TOQUE_AUDIT_KEY_FILE": str(settings.audit_key_file),
        **settings.ray_login(),
    }
    if running is not None:
        found = running.environment() | found
    if not _has_key_of(settings, os.environ.get("TOQUE_STORE") or settings.store_url):
        del found["TOQUE_AUDIT_KEY_FILE"]
    found.pop("TOQUE_PROJECT", None)
    return {name: text for name, text in found.items() if not os.environ.get(name)}


def _has_key_of(settings: Settings, url: str) -> bool:
    """Whether the audit key of the state folder is there, and is one of this store."""
    from toque.ray_apps.local.audit_key import is_key_of
    from toque.registry.audit_keys import AuditKeys

    file = settings.audit_key_file
    return file.exists() and is_key_of(AuditKeys.of_file(file), url, settings)


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what is wrong with a project's rows or its training into the command's error."""
    from toque.featurestore import FeatureStoreError
    from toque.functions.evaluation import EvaluationError
    from toque.functions.training import TrainingError
    from toque.registry import RegistryError

    try:
        yield
    except (FeatureStoreError, EvaluationError, TrainingError, RegistryError) as error:
        raise Failed(str(error)) from error
    except OSError as error:
        raise Failed(
            f"{error}; the state lies in the folder of --home, which must be yours to write to"
        ) from error


def _chosen(project: Project, name: str | None) -> ModelDefinition:
    """The definition of the model that is asked for, or of the only one. Raises: UsageError."""
    if name is None and len(project.models) != 1:
        there = ", ".join(project.models) or "none"
        raise UsageError(
            f"which model? {project.module} declares {there}; name one, as in `toque train MODEL`"
        )
    return project.model(name or next(iter(project.models)))


def _load(module: str) -> None:
    """Run the project's `load`, if it has one. Raises: Failed if it fails for a reason of its own."""
    name = f"{module}.load"
    if find_spec(name) is None:
        note(f"{name} does not exist: the tables are taken as they are")
        return
    note("loading the tables")
    try:
        loaded = import_module(name).load()
    except Exception as error:  # it is the user's code
        raise Failed(f"{name}.load failed: {type(error).__name__}: {error} ({_line_of(error)})") from error
    if loaded is not None and hasattr(loaded, "written"):
        note(f"{loaded.rows:,} rows, {loaded.written:,} of them new, {loaded.labelled:,} with a label")


def _refresh(service: str | None) -> None:
    """Refresh the other sources of a feature service: the project's `load` may know one of them only."""
    from toque.functions.features import refresh_service

    if service is None:
        return
    done = refresh_service(service)
    new = {each.view: each.rows for each in done.views if each.rows}
    if new:
        note(f"new rows of other views: {', '.join(f'{view} {rows:,}' for view, rows in new.items())}")


def _line_of(error: Exception) -> str:
    """File and line of the user's code at which an error came up, else of any."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(str(Path.cwd()))] or frames
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}"


def _put_online(service: str) -> None:
    """Bring the features of a service online where the platform runs, so that its model can be asked by key."""
    from toque.functions import context
    from toque.functions.features import materialize

    if context().redis_url is None:
        return
    views = [each.view.name for each in context().features().get_feature_service(service).projections]
    done = materialize(views=views)
    note(f"{done.written:,} rows are online for questions by key")


def _promote(done: TrainedByHand) -> str | None:
    """Make a version the champion; returns why the model's policy does not allow it, if so."""
    from toque.functions import context
    from toque.registry import Refused

    try:
        context().registry().set_alias(done.model, "champion", done.version, reason="toque train --promote")
    except Refused as error:
        return str(error)
    return None


def _tell(given: Given, definition: ModelDefinition, done: TrainedByHand, *, live: bool) -> None:
    """Say what was trained, how it was judged, and what to do next."""
    following = _next(definition, done, live=live)
    if given.output == "json":
        value({**done.model_dump(mode="json"), "promoted": live, "next": following})
        return
    say(
        f"{done.model}@{done.version}: learnt from {done.rows:,} rows, judged on {done.held_out:,} later ones"
    )
    for line in _judged(done):
        say(f"  {line}")
    say(
        f"gate {done.gate.gate}: {'passed' if done.gate.passed else 'failed'}{f' ({done.gate.reason})' if done.gate.reason else ''}"
    )
    say(f"next: {following}")


def _judged(done: TrainedByHand) -> Iterator[str]:
    gate = done.gate
    for check in gate.checks:
        verdict = "kept" if check.passed else "BROKEN"
        yield f"{check.name} is {check.value:.4g}, wanted {check.rule} {check.limit:.4g}: {verdict}"
    yield ", ".join(
        f"{name} {figure:.4g}"
        for name, figure in gate.metrics.items()
        if "_" not in name or name == "log_loss"
    )


def _next(definition: ModelDefinition, done: TrainedByHand, *, live: bool) -> str:
    name, version = done.model, done.version
    if not done.gate.passed:
        return (
            f"give more rows or better features, or change the gate in the definition of {name} if its limits are wrong; "
            "then `toque train` again"
        )
    if live:
        return f"`toque up` serves it here, `toque predict {name} --example` asks it; `toque run materialize` lets it be asked by key"
    steps = (
        [f"`toque models approve {name} {version}` by a colleague"] if definition.governance.approvals else []
    )
    steps.append(f"`toque models promote {name} {version}`")
    return f"`toque up` (once), then {', then '.join(steps)}"
