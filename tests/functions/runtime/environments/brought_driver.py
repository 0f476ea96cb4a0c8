"""Driver of trainings with an environment, on a Ray whose nodes run in a thin virtual environment; prints what became of them.

Run: python -m tests.functions.runtime.environments.brought_driver FOLDER NUM_WORKERS. FOLDER has `wheels`.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import ray

from tests.functions.training.recipes import FAST
from tests.waiting import until
from toque.functions import use_context
from toque.functions.runtime.context import context_of
from toque.functions.runtime.durable.executor import Executor
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.environments import Environment, EnvironmentPolicy
from toque.functions.training import train_recipe

PROJECT = "tests.functions.runtime.environments.brought_recipes"


def main(folder: Path, num_workers: int) -> None:
    policy = EnvironmentPolicy(
        packages={"*": ("tiny",)}, variables={"*": ("BROUGHT",)}, index=f"{folder}/wheels"
    )
    used = context_of({"TOQUE_STORE": f"file://{folder}/store", "TOQUE_PROJECT": PROJECT})
    used = replace(used, environments=policy, actor="ada")
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    executor = Executor(used, Ledger(used.store, actor="executor"))
    with use_context(used):
        brought = Environment(packages=("tiny==1.0",), variables={"BROUGHT": "yes"})
        submitted = {
            "brought": _submit("one", brought, num_workers),
            "absent": _submit("two", Environment(packages=("tiny==9.9",)), 1),
            "bare": _submit("three", None, 1),
        }
        until(
            lambda: executor.poll() == 0 and all(each.record().ended for each in submitted.values()),
            within_s=400,
        )
        found = {name: each.record().model_dump(mode="json") for name, each in submitted.items()}
        runs = used.registry().search_runs("one")
        record = used.registry().get_run(runs[0].id).record() if runs else None
        found["run"] = {"tags": dict(record.tags), "facts": dict(record.facts)} if record else {}
        found["here"] = "tiny" in sys.modules
        (folder / "found.json").write_text(json.dumps(found))
    executor.close()
    ray.shutdown()


def _submit(model, environment, num_workers):
    return train_recipe.submit(
        model, "brought", params=FAST, num_workers=num_workers, environment=environment
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
