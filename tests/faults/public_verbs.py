"""Public verbs that write, read off declarations: methods, functions, routes of the gateway and commands of `toque`.

Whatever is public counts as a verb that writes, unless its declaration says that it reads (a name that begins as our reading verbs do, the
role "viewer", the method GET) or `LEFT_OUT` gives the reason why it stands in no world.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator

from toque.featurestore import FeatureStore
from toque.functions.prediction_log import LogWriter
from toque.functions.runtime import catalog
from toque.functions.runtime.durable.ledger import Ledger
from toque.ray_apps.cli.main import parser
from toque.ray_apps.gateway import app
from toque.registry import Registry, Role, Run, RunLog
from toque.registry.access import Access

_CLASSES = (Registry, Run, RunLog, Access, FeatureStore, Ledger, LogWriter)
_READING = re.compile(
    r"(get|find|list|read|recall|follow|search|compare|plot|verify|check|download|fetch|all|known|history|plan|source_table|stream_table)(_|$)"
)
_READS = "reads"
_MEASURES = (
    "reads, and appends one row of figures or one page by time or number, which the next call makes anew"
)
_TRAINS = "hours of work between requests: killed and resumed in tests/functions/training and tests/functions/tuning"
_DURABLE = "a verb of durable functions: tests/functions/runtime/test_fault_matrix.py"
_THREAD = "its requests are of a thread that ships: killed at each of its steps in tests/functions/prediction_log/test_kills.py"
_PART = "a step of start_run and Run, which are in the matrix"
_SHARE = "a part of another function, which is in the matrix"
_STREAM = "a consumer's, killed and fenced in tests/featurestore/streams"
_INDEXES = "killed at each write in tests/featurestore/vectors"
_GENERATIVE = "registers through Registry.create_version, or sets one journal entry as set_retention does"

LEFT_OUT = {
    **dict.fromkeys(
        (
            "Registry.accepted_code", "Registry.alias_at", "Registry.as_actor", "Registry.card", "Registry.dependents", "Registry.index",
            "Registry.layer", "Registry.model_at", "Registry.segments", "Registry.signature", "Registry.traffic", "Registry.unmet",
            "Run.record", "Run.series", "RunLog.of", "Access.recognises", "FeatureStore.builds", "FeatureStore.compute_offline",
            "FeatureStore.definitions_digest", "FeatureStore.in_generation", "FeatureStore.layouts", "FeatureStore.now", "FeatureStore.sources_of",
            "FeatureStore.offline_table", "FeatureStore.refresh", "FeatureStore.views_with_known_times", "Ledger.arguments", "Ledger.clock",
            "Ledger.costs", "Ledger.first_entry", "Ledger.invocations", "Ledger.journal", "Ledger.submitted", "Ledger.unfinished",
            "preview_erasure", "list_erasures", "retrieve", "plan_rollout", "what_changed", "worst_slices", "explain_prediction",
            "prediction_feature_times", "prediction_inputs", "replay_predictions", "evaluate_retrieval",
        ),
        _READS,
    ),
    **dict.fromkeys(("Registry.beat", "Registry.begin", "Registry.end", "Registry.store_artifact", "Registry.store_segment"), _PART),
    **dict.fromkeys(("Ledger.submit", "Ledger.redrive", "Ledger.cancel", "Ledger.signal", "Ledger.delete", "Ledger.purge", "Ledger.notify"), _DURABLE),
    **dict.fromkeys(("Ledger.delete_ended", "Ledger.complete_deletion"), "what `Ledger.delete` and retention do of a deletion, which the next call completes"),
    **dict.fromkeys(("LogWriter.close", "LogWriter.commit"), _THREAD),
    **dict.fromkeys(
        (
            "alarm_report", "evidently_report", "feature_report", "model_report", "rollout_report", "watch_answers", "watch_drift",
            "watch_embeddings", "watch_operations", "watch_performance", "watch_quality", "watch_skew", "estimate_performance",
            "watch_language_model", "watch_language_models", "calibrate_judge", "evaluate_answers", "evaluate_gate", "evaluate_likelihoods",
            "publish_journal_heads", "inspect_model", "inspect_models",
        ),
        _MEASURES,
    ),
    **dict.fromkeys(
        (
            "fine_tune", "retrain", "request_retrain", "serve_fine_tune", "train_declared", "train_model", "train_recipe", "train_tabular",
            "train_trial", "tune_model", "tune_tabular", "predict_batch",
        ),
        _TRAINS,
    ),
    **dict.fromkeys(("drain_share", "send_alert", "tell_people"), _SHARE),
    "replay_stream": _STREAM,
    **dict.fromkeys(("FeatureStore.drop_indexes", "FeatureStore.refresh_index", "refresh_vector_indexes", "refresh_documents"), _INDEXES),
    **dict.fromkeys(("register_prompt", "set_language_monitors"), _GENERATIVE),
}  # fmt: skip

# A route or a command writes through verbs: those that it calls, each of which has a world or a reason of its own. Empty: it only reads.
ROUTES: dict[str, tuple[str, ...]] = {
    "DELETE /invocations/{invocation}": ("Ledger.cancel",),
    "DELETE /models/{model}/holdouts/{holdout}": ("Registry.end_holdout",),
    "DELETE /tokens/{name}": ("Access.revoke",),
    "PATCH /workspaces/{name}": ("Access.change_workspace",),
    "POST /features/read": (),
    "POST /features/{view}/push": ("FeatureStore.push",),
    "POST /features/{view}/search": (),
    "POST /feedback": ("LogWriter.commit",),
    "POST /functions/{name}": ("Ledger.submit",),
    "POST /invocations/{invocation}/purge": ("Ledger.purge",),
    "POST /invocations/{invocation}/redrive": ("Ledger.redrive",),
    "POST /invocations/{invocation}/signals/{name}": ("Ledger.signal",),
    "POST /models/{model}/aliases/{alias}/rollback": ("Registry.rollback",),
    "POST /models/{model}/audit": (),
    "POST /models/{model}/promote": ("Registry.promote",),
    "POST /models/{model}/traffic/preview": (),
    "POST /models/{model}/versions/{version}/approve": ("Registry.approve",),
    "POST /models/{model}/versions/{version}/reject": ("Registry.reject",),
    "POST /models/{model}/versions/{version}/signatures": ("Registry.add_signature",),
    "POST /runs/{run}/register": ("Registry.create_version",),
    "POST /sign-in-codes": (),  # a code lives in memory
    "POST /tokens": ("Access.create_token",),
    "POST /v2/models/{model}/{rest:path}": (),  # says where predictions are made
    "POST /v2/repository/index": (),
    "POST /workspaces": ("Access.create_workspace",),
    "PUT /models/{model}/aliases/{alias}": ("Registry.set_alias",),
    "PUT /models/{model}/holdouts/{holdout}": ("Registry.begin_holdout",),
    "PUT /models/{model}/policy": ("Registry.set_policy",),
    "PUT /models/{model}/traffic": ("Registry.set_traffic",),
}
_OF_THE_MACHINE = (
    "demo",
    "deploy",
    "down",
    "init",
    "node drain",
    "node start",
    "store restore",
    "run",
    "store copy",
    "ui",
    "up",
)
_READING_COMMANDS = (
    "alerts status", "store audit", "store keys list", "access log", "capacity", "monitor budget", "features catalog", "config", "invocations costs", "monitor drift", "privacy erasures", "runs experiments",
    "features list", "functions", "monitor incidents", "invocations list", "invocations show", "monitor labels", "load compare", "load find-knee", "load run",
    "invocations logs", "models audit", "models card", "models download", "models history", "models list", "models made-from", "models origins",
    "models show", "models verify", "monitor status", "plan train", "predict", "prompts diff", "prompts list", "invocations queue", "monitor replay", "privacy retention show",
    "rollout explain", "rollout page", "rollout plan", "rollout status", "runs compare", "runs download", "runs list", "runs plot",
    "runs show", "monitor scores", "features search", "sources", "status", "streams list", "streams show", "access token list", "monitor trace", "traffic show", "features vectors",
    "monitor why", "access workspace list",
)  # fmt: skip
COMMANDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((*_OF_THE_MACHINE, *_READING_COMMANDS), ()),
    # Keys of the audit lie in files of this machine, which `tests/ray_apps/cli` covers.
    **dict.fromkeys(("store keys adopt", "store keys retire", "store keys rotate"), ()),
    "alerts ack": ("acknowledge_alert",),
    "alerts silence": ("silence_alerts",),
    "monitor false-alarm": ("call_false_alarm",),
    "store backup": ("back_up",),
    "privacy erase": ("erase_subject",),
    "features refresh-vectors": ("refresh_vector_indexes",),
    "invocations cancel": ("Ledger.cancel",),
    "invocations purge": ("Ledger.purge",),
    "invocations redrive": ("Ledger.redrive",),
    "invocations signal": ("Ledger.signal",),
    "monitor label": ("LogWriter.commit",),
    "models approve": ("Registry.approve",),
    "models policy": ("Registry.set_policy",),
    "models promote": ("Registry.promote",),
    "models register": ("Registry.create_model", "Registry.create_version"),
    "models reject": ("Registry.reject",),
    "models sign": ("Registry.sign_version",),
    "prompts register": ("register_prompt",),
    "privacy retention set": ("set_retention",),
    "rollout abort": ("end_rollout",),
    "rollout end": ("end_rollout",),
    "rollout pause": ("pause_rollout",),
    "rollout promote": ("end_rollout",),
    "rollout resume": ("resume_rollout",),
    "rollout start": ("start_rollout",),
    "rollout tick": ("tick_rollout",),
    "runs upload": ("RunLog.begin", "RunLog.write", "RunLog.change"),
    "streams replay": ("replay_stream",),
    "submit": ("Ledger.submit",),
    "access token create": ("Access.create_token",),
    "access token revoke": ("Access.revoke",),
    "traffic end-holdout": ("Registry.end_holdout",),
    "traffic holdout": ("Registry.begin_holdout",),
    "traffic layer": (),
    "traffic rollback": ("Registry.rollback",),
    "traffic set": ("Registry.set_traffic",),
    "train": ("train_model",),
    "access workspace create": ("Access.create_workspace",),
    "access workspace set": ("Access.change_workspace",),
}


def writing_methods() -> set[str]:
    """Public methods of the platform's classes, but those whose names begin as our reading verbs do."""
    return {
        f"{owner.__name__}.{name}"
        for owner in _CLASSES
        for name in dir(owner)
        if not name.startswith("_") and not _READING.match(name) and inspect.isroutine(getattr(owner, name))
    }


def writing_functions() -> set[str]:
    """The platform's functions, but those that a viewer may call, which by that read."""
    declared = [item for item in catalog.discover() if item.reference.startswith("toque.functions.")]
    return {item.name for item in declared if not (item.http and item.role is Role.viewer)}


def writing_routes() -> set[str]:
    """Routes of the gateway, with their method, but those that are got."""
    return {
        f"{method} {getattr(route, 'path', '')}"
        for router in app._ROUTERS
        for route in router.routes
        for method in getattr(route, "methods", ())
        if method not in {"GET", "HEAD"}
    }


def commands() -> set[str]:
    """Commands of `toque`, each with its action."""
    return set(_leaves(parser()))


def _leaves(command_line: argparse.ArgumentParser, before: str = "") -> Iterator[str]:
    below = [action for action in command_line._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield before.strip()
    for action in below:
        for name, command in action.choices.items():
            yield from _leaves(command, f"{before} {name}")
