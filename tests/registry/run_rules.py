"""Rules and invariants for runs, experiments and tokens, used by the machine of `test_registry_machine`."""

from itertools import count
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from toque.registry import AlreadyExists, InvalidInput, NotFound, Registry, Role, open_store
from toque.registry.access import Access
from toque.registry.runs import Run

EXPERIMENTS = ["sweep", "final"]
ACTORS = ["ada", "bob", "cleo"]
MOST_RUNS = 6
actors = st.sampled_from(ACTORS)
runs = st.integers(0, MOST_RUNS - 1)


class RunRules(RuleBasedStateMachine):
    """Model of the registry in plain dictionaries: `self.runs`, `self.titles` and `self.tokens`."""

    url: str
    warm: dict[str, Registry]

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[dict[str, Any]] = []
        self.handles: list[Run] = []
        self.titles: dict[str, tuple[str, bool]] = {}  # experiment: its title, and whether it was put away
        self.tokens: list[dict[str, Any]] = []
        self.access: Access | None = None

    def teardown(self) -> None:
        for run in self.handles:
            run.finish()

    @rule(actor=actors, experiment=st.sampled_from(EXPERIMENTS), depth=st.sampled_from(["1", "2"]))
    def start_run(self, actor: str, experiment: str, depth: str) -> None:
        if len(self.runs) < MOST_RUNS:
            run = self.warm[actor].start_run(experiment, params={"depth": depth})
            self.handles.append(run)
            self.runs.append(
                {"id": run.id, "actor": actor, "experiment": experiment, "params": {"depth": depth},
                 "points": [], "tags": {}, "status": "RUNNING"}
            )  # fmt: skip

    @rule(actor=actors, run=runs, step=st.integers(0, 3), loss=st.sampled_from([0.1, 0.5, 0.9]))
    def log_metric(self, actor: str, run: int, step: int, loss: float) -> None:
        if self.is_going(run):
            handle = self.warm[actor].get_run(self.runs[run]["id"])
            handle.log_metric("loss", loss, step)
            handle.flush()
            self.runs[run]["points"].append((step, loss))

    @rule(
        actor=actors, run=runs, param=st.sampled_from(["depth", "width"]), value=st.sampled_from(["1", "2"])
    )
    def log_param(self, actor: str, run: int, param: str, value: str) -> None:
        if self.is_going(run):
            handle = self.warm[actor].get_run(self.runs[run]["id"])
            if self.runs[run]["params"].get(param, value) != value:
                with pytest.raises(InvalidInput, match="already"):
                    handle.log_params({param: value})
                return
            handle.log_params({param: value})
            handle.flush()
            self.runs[run]["params"][param] = value

    @rule(run=runs, status=st.sampled_from(["FINISHED", "FINISHED", "FAILED", "KILLED"]))
    def finish(self, run: int, status: Any) -> None:
        if self.is_going(run):
            self.handles[run].set_tags({"how": status})
            self.handles[run].finish(status)
            self.runs[run] |= {"status": status, "tags": {"how": status}}

    @rule(actor=actors, experiment=st.sampled_from(EXPERIMENTS), title=st.sampled_from(["Trees", "Nets"]))
    def name_experiment(self, actor: str, experiment: str, title: str) -> None:
        reg = self.warm[actor]
        taken = any(name != experiment and it == (title, False) for name, it in self.titles.items())
        away = self.titles.get(experiment, ("", False))[1]
        if experiment not in self.titles and not self.has_runs(experiment):
            with pytest.raises(NotFound):
                reg.change_experiment(experiment, title=title)
        elif taken and not away:
            with pytest.raises(AlreadyExists, match=title):
                reg.change_experiment(experiment, title=title)
        else:
            reg.change_experiment(experiment, title=title)
            self.titles[experiment] = (title, away)

    @rule(actor=actors, experiment=st.sampled_from(EXPERIMENTS), deleted=st.booleans())
    def put_away(self, actor: str, experiment: str, deleted: bool) -> None:  # noqa: FBT001 - hypothesis names it
        if experiment in self.titles:
            title = self.titles[experiment][0]
            taken = any(name != experiment and it == (title, False) for name, it in self.titles.items())
            if taken and not deleted:
                with pytest.raises(AlreadyExists, match=title):
                    self.warm[actor].change_experiment(experiment, deleted=False)
                return
            self.warm[actor].change_experiment(experiment, deleted=deleted)
            self.titles[experiment] = (title, deleted)

    @rule(actor=actors, name=st.sampled_from(["ci", "web"]), role=st.sampled_from(list(Role)))
    def create_token(self, actor: str, name: str, role: Role) -> None:
        access = Access(self.warm[actor].store, actor=actor)
        if self.live_token(name) is not None:
            with pytest.raises(AlreadyExists, match=name):
                access.create_token(name, role)
            return
        text = access.create_token(name, role)
        self.tokens.append({"text": text, "name": name, "role": role, "by": actor, "live": True})

    @rule(name=st.sampled_from(["ci", "web"]))
    def revoke(self, name: str) -> None:
        token = self.live_token(name)
        if token is None:
            with pytest.raises(NotFound, match=name):
                self.warm_access().revoke(name)
            return
        self.warm_access().revoke(name)
        token["live"] = False

    @invariant()
    def runs_agree(self) -> None:
        for reg in (self.warm["bob"], Registry(open_store(self.url), actor="auditor")):
            found = {run.id: run for run in reg.search_runs(EXPERIMENTS)}
            assert {
                run.id: (run.actor, run.experiment, run.status, run.params, run.metrics, run.tags)
                for run in found.values()
            } == {
                run["id"]: (run["actor"], run["experiment"], run["status"], run["params"],
                            self.last(run), run["tags"])
                for run in self.runs
            }  # fmt: skip
            low = reg.search_runs(
                EXPERIMENTS, "metrics.loss < 0.6 and params.depth = '1' and status != 'FAILED'"
            )
            assert {run.id for run in low} == {
                run["id"] for run in self.runs
                if self.last(run).get("loss", 1.0) < 0.6
                and run["params"]["depth"] == "1" and run["status"] != "FAILED"
            }  # fmt: skip
            noted = {each.name: (each.title, each.deleted) for each in reg.all_experiments()}
            assert noted == {
                **{run["experiment"]: (run["experiment"], False) for run in self.runs}, **self.titles
            }  # fmt: skip

    @invariant()
    def tokens_agree(self) -> None:
        for access in (self.warm_access(), Access(open_store(self.url), actor="auditor")):
            for token in self.tokens:
                principal = access.verify(token["text"])
                actual = None if principal is None else (principal.name, principal.grants[0].role)
                assert actual == ((token["name"], token["role"]) if token["live"] else None)
            listed = [(token.name, token.grants[0].role, token.created_by) for token in access.list_tokens()]
            assert listed == [(token["name"], token["role"], token["by"]) for token in self.tokens]

    def warm_access(self) -> Access:
        """An Access that lives as long as the machine, with a second between any two reads."""
        if self.access is None:
            self.access = Access(self.warm["ada"].store, actor="ada", monotonic=count(step=2).__next__)
        return self.access

    def is_going(self, run: int) -> bool:
        return run < len(self.runs) and self.runs[run]["status"] == "RUNNING"

    def has_runs(self, experiment: str) -> bool:
        return any(run["experiment"] == experiment for run in self.runs)

    def live_token(self, name: str) -> dict[str, Any] | None:
        return next((token for token in self.tokens if token["name"] == name and token["live"]), None)

    @staticmethod
    def last(run: dict[str, Any]) -> dict[str, float]:
        """Value at the highest step, the latest one where there are several."""
        points = sorted(run["points"], key=lambda point: point[0])
        return {"loss": points[-1][1]} if points else {}
