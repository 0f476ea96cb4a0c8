"""Builds the door with all that stands behind it: registry, engines, prediction log, live counts and access."""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack

from toque.functions.generative.engines import EngineProcesses, engine_environment, engine_of, scratch_folder
from toque.functions.live_counts import live_publisher
from toque.functions.prediction_log import LogWriter, close_writers
from toque.functions.runtime.changes.announcer import journals_in
from toque.functions.runtime.changes.feed import watch_of
from toque.functions.runtime.process import enter_process
from toque.ray_apps.admission import flush_refusals, open_admission
from toque.ray_apps.admission.token_budget import TokenBudgets
from toque.ray_apps.generative.answering.generator import Generator
from toque.ray_apps.generative.door import GenerativeDoor
from toque.ray_apps.generative.load import LoadMeter
from toque.ray_apps.generative.models import GenerativeModels
from toque.ray_apps.generative.options import GenerativeOptions
from toque.ray_apps.generative.series import EngineSeries
from toque.ray_apps.generative.versions import VersionStarter
from toque.ray_apps.predictor.deploy.replica import confirmation_of, open_log
from toque.ray_apps.predictor.http.auth import Authenticator, NoAuthentication, TokenAuthenticator
from toque.ray_apps.predictor.inference.live import LiveCounter
from toque.ray_apps.predictor.inference.recording import Recorder
from toque.ray_apps.predictor.inference.series import ModelSeries
from toque.ray_apps.predictor.versions.follower import VersionFollower
from toque.registry import Registry, open_store
from toque.registry.access import workspace_store
from toque.registry.audit_keys import AuditKeys

__all__ = ["build_door"]


def build_door(options: GenerativeOptions, *, name: str = "generative") -> GenerativeDoor:
    """Make the door's ASGI application, in the event loop that will run it."""
    enter_process(
        "generative",
        name=name,
        store_url=options.store_url,
        environment=os.environ,
        redis_url=options.redis_url,
    )
    return _Parts(options, name).door()


class _Parts:
    """What all language models of a platform share behind one door."""

    def __init__(self, options: GenerativeOptions, name: str) -> None:
        self._options, self._name = options, name
        self._max_in_flight = options.max_ongoing_requests + max(0, options.max_queued_requests)
        self._platform = open_store(options.store_url, audit_keys=AuditKeys.of_environment(os.environ))
        self._held = ExitStack()
        self._folder = self._held.enter_context(scratch_folder())
        self._engines = EngineProcesses(
            engine_of(options.engine, options.engine_program),
            self._folder / "logs",
            environment=engine_environment(os.environ),
            most_waiting=max(
                1, self._max_in_flight // 2
            ),  # the door refuses the others without a look at their tier
        )
        self._budgets, self._meter, self._loop = TokenBudgets(), LoadMeter(), asyncio.get_running_loop()

    def door(self) -> GenerativeDoor:
        """Make the door, with no workspace opened yet."""
        options = self._options
        return GenerativeDoor(
            self._workspace,
            self._authenticator(),
            max_body_bytes=options.max_body_bytes,
            max_in_flight=self._max_in_flight,
            series=EngineSeries(self._engines) if options.metrics else None,
            meter=self._meter,
            on_close=self._close,
        )

    def _workspace(self, name: str) -> GenerativeModels:
        """Make the language models of a workspace, none of them opened."""
        options = self._options.model_copy(update={"workspace": name})
        registry = Registry(workspace_store(self._platform, name), actor="generative")
        starter = VersionStarter(
            registry, self._engines, workspace=name, loop=self._loop, folder=self._folder / "weights",
            start_s=options.start_s, threads=options.engine_threads,
        )  # fmt: skip
        log = open_log(options)
        return GenerativeModels(
            registry,
            lambda model: _generator(model, options, registry, starter, log, self._budgets, self._meter),
        )

    def _authenticator(self) -> Authenticator:
        options = self._options
        if not options.authentication:
            return NoAuthentication(None)
        return TokenAuthenticator(
            open_admission(self._platform, self._name, oidc=options.oidc), workspace=None
        )

    async def _close(self) -> None:
        await self._engines.close()
        await self._loop.run_in_executor(None, close_writers)
        await self._loop.run_in_executor(None, flush_refusals)
        self._held.close()


def _generator(
    model: str,
    options: GenerativeOptions,
    registry: Registry,
    starter: VersionStarter,
    log: LogWriter | None,
    budgets: TokenBudgets,
    meter: LoadMeter,
) -> Generator:
    series = ModelSeries(model, options.workspace) if options.metrics else None
    tally = None
    if options.redis_url is not None:
        tally = live_publisher(options.redis_url).tally(options.workspace, model)
    journal = journals_in(registry.store, registry.follow(model).journal.path)
    made = Generator(
        VersionFollower(
            model,
            registry,
            starter.start,
            watch=watch_of(options.redis_url, journal, every_s=options.poll_s),
            retain=1,
            dropped=starter.dropped,
        ),
        Recorder(model, log, confirmation=confirmation_of(log, options)),
        workspace=options.workspace,
        budgets=budgets,
        live=LiveCounter(tally, series),
        meter=meter,
        price=options.token_price(model),
        close=series.close if series is not None else lambda: None,
    )
    if series is not None:
        series.responded(made.statuses)
    return made
