"""Module paths of the functions in the release before, and the paths that replace them.

Journals hold functions as `module:qualname`; `resolve` translates old modules by this table, so that an
invocation recorded by the release before still finds its function.
"""

import importlib
from collections.abc import Callable, Mapping

from registry.renamed import install, moved, warn_renamed


def old_names(module: str, names: Mapping[str, str]) -> Callable[[str], object]:
    """Make the `__getattr__` of a module whose names changed: the old ones go on for one release, with a DeprecationWarning.

    names: old names and the new ones, all in `module`.
    """

    def find(name: str) -> object:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_renamed(f"{module}.{name}", f"{module}.{names[name]}")
        return getattr(importlib.import_module(module), names[name])

    return find


def moved_names(package: str, module: str) -> Callable[[str], object]:
    """Make the `__getattr__` of a package that was a module: the classes and functions of `module` go on for one release.

    Each use gives a DeprecationWarning.
    """

    def find(name: str) -> object:
        found = None if name.startswith("_") else getattr(importlib.import_module(module), name, None)
        if getattr(found, "__module__", None) != module:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        warn_renamed(f"{package}.{name}", f"{module}.{name}")
        return found

    return find


RENAMED = (
    moved(
        "functions.runtime",
        "functions.runtime.run",
        "capture cluster deadline fanout nursery=forkserver local=local_run log niceness work=execution "
        "warm=warm_workers",
    )
    | moved(
        "functions.runtime",
        "functions.runtime.durable",
        "admission=admission.rule attendance=attempt slots=concurrency dead_letters executor invocation "
        "lease=heartbeat ledger places=admission.slots queue record memo=result_cache values "
        "versions=code_versions workflow",
    )
    | moved("functions.runtime", "functions.runtime.declaration", "digest http_types late_imports options")
    | moved("functions.runtime", "functions.runtime.run", "future")
    | moved("functions.runtime", "functions.runtime.triggers", "events schedule topic waiter")
    | moved(
        "functions.stats",
        "functions.stats.comparison",
        "sequential betting counts spending quantiles effects planner bandit",
    )
    | moved(
        "functions.training",
        "functions.model_formats",
        "program flavors scoring=load matrices assembly=table_inputs",
    )
    | moved(
        "functions.training",
        "functions.training.tabular",
        "tabular=train order=job artifact dataset fitting network ondisk=out_of_core preprocessing "
        "scorer target start=warm_start calibration",
    )
    | moved("functions.training", "functions.training.recipe", "recipe=train recipe_job=job")
    | moved(
        "functions.training",
        "functions.training.loop",
        "loop=training_loop lesson=task distributed world=process_groups.process_group compiling interrupts "
        "spool=rows.mmap_rows cost",
    )
    | moved("functions.training.loop", "functions.training.loop.rows", "mmap_rows sample_rows")
    | moved(
        "functions.training.loop",
        "functions.training.loop.process_groups",
        "process_group layer_split slow_workers",
    )
    | moved("functions.training", "functions.training", "bill=trained")
    | moved("functions", "functions.tuning", "tuning=jobs")
    | moved(
        "functions.training",
        "functions.tuning",
        "asking=tpe halving=ray_tune_asha rungs=asha population=ray_tune_pbt generations=pbt_state "
        "descent=pbt_lineage space sweeping=sweep telling=epoch_metrics tracking trials",
    )
    | moved("functions", "functions.features", "features=jobs")
    | moved("functions", "functions.reporting", "features_report=feature_page")
    | moved(
        "functions", "functions.maintenance", "feature_maintenance=features registry_maintenance=registry"
    )
    | moved("functions", "functions.alerting", "alerts=jobs")
    | moved("functions", "functions.evaluation", "batch_inference scoring=realised_loss")
    | moved(
        "functions",
        "functions.retraining",
        "challengers retraining=jobs retraining_policy=policy retraining_triggers=triggers "
        "training_window=windows",
    )
    | moved(
        "functions.evaluation",
        "functions.evaluation.metrics",
        "metrics=probabilities class_metrics=classes number_metrics=numbers calibration",
    )
    | moved(
        "functions.evaluation", "functions.evaluation.checks", "check behaviour fairness robustness slices"
    )
    | moved(
        "functions.monitoring",
        "functions.monitoring.drift",
        "drift=monitor reference large=dataset_sketches watch_features=watch",
    )
    | moved(
        "functions.monitoring",
        "functions.monitoring.quality",
        "quality=monitor faults profile units incidents watch_quality=watch",
    )
    | moved(
        "functions.monitoring", "functions.monitoring.estimates", "estimate=classes estimate_numbers=numbers"
    )
    | moved(
        "functions.monitoring",
        "functions.monitoring.diagnosis",
        "explain=slices_and_features causes=what_changed",
    )
    | moved("functions.rollout", "functions.rollout", "sight=status gather=evidence_reader")
    | moved(
        "functions.rollout",
        "functions.rollout.judge",
        "decide guards=rollback_rules interval arms verdict look=rule_input slo",
    )
    | moved(
        "functions.rollout",
        "functions.rollout.evidence",
        "evidence=sums observe=cohort_sums assigned=assigned_units metrics",
    )
    | moved("functions.rollout", "functions.rollout.planning", "plan planning=jobs replay")
    | moved(
        "functions.prediction_log",
        "functions.prediction_log.reading",
        "shared=scan_cache scan_cache outcomes",
    )
    | moved(
        "functions.prediction_log",
        "functions.prediction_log.writing",
        "places=wal_root wal_root adoption confirmations copies drain export losses modes pseudonyms series shipper stream "
        "stream_of_0_1 wal",
    )
    | moved(
        "functions.evaluation",
        "functions.evaluation",
        "demands=extra_checks kinds=outcome_kinds offline=offline_gate",
    )
    | moved("functions.alerting", "functions.alerting", "shapes=payloads")
    | moved("functions.reporting", "functions.reporting", "parts=html")
)

install(RENAMED)
