"""The language models of one workspace that this process serves, each opened when it is first asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from toque.functions.generative import is_generative
from toque.ray_apps.generative.answering.generator import Generator
from toque.ray_apps.generative.openai.errors import ApiRefusal
from toque.registry import InvalidInput, ModelState, ModelVersion, NotFound, RegistryError
from toque.registry.registry import Registry

__all__ = ["GenerativeModels"]


class GenerativeModels:
    """Generators of a workspace's models by name. make: one for a model, not started."""

    def __init__(self, registry: Registry, make: Callable[[str], Generator]) -> None:
        self._registry, self._make = registry, make
        self._opened: dict[str, asyncio.Task[Generator]] = {}

    async def get(self, model: str) -> Generator:
        """Get a model's generator; the first to ask waits until its versions are ready. Raises: ApiRefusal."""
        opening = self._opened.get(model)
        if opening is None:
            opening = self._opened[model] = asyncio.get_running_loop().create_task(self._open(model))
        try:
            return await asyncio.shield(opening)
        except Exception:
            if self._opened.get(model) is opening:  # not the next try, which another caller has begun since
                del self._opened[model]
            raise

    def list(self) -> dict[str, datetime]:
        """List the language models with a champion, with the time each was made; reads the store. Raises: ApiRefusal 503."""
        try:
            states = [self._registry.get_model(name) for name in self._registry.list_models()]
        except RegistryError as error:
            raise _store_away(error) from error
        return {state.name: state.created_at for state in states if _is_served(state) and state.created_at}

    def find_version(self, model: str, selector: str) -> ModelVersion | None:
        """Find the version of a language model that a number or an alias names. Raises: ApiRefusal 503."""
        try:
            version = self._registry.get_version(model, int(selector) if selector.isdecimal() else selector)
        except (NotFound, InvalidInput):
            return None
        except RegistryError as error:
            raise _store_away(error) from error
        return version if is_generative(version) and version.deleted_at is None else None

    async def close(self) -> None:
        """Close every model that was opened."""
        opened = await asyncio.gather(*self._opened.values(), return_exceptions=True)
        await asyncio.gather(*(each.close() for each in opened if isinstance(each, Generator)))

    async def _open(self, model: str) -> Generator:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._check, model)
        generator = self._make(model)
        await loop.run_in_executor(None, generator.follower.start)
        return generator

    def _check(self, model: str) -> None:
        """Refuse a name that is no language model's. Raises: ApiRefusal."""
        try:
            state = self._registry.get_model(model)
        except (NotFound, InvalidInput):
            state = None
        except RegistryError as error:
            raise _store_away(error) from error
        if state is None or not any(map(is_generative, state.versions.values())):
            raise ApiRefusal(
                f"model: there is no language model {model!r:.80}; GET /v1/models lists them",
                status=404,
                param="model",
                code="model_not_found",
            )


def _is_served(state: ModelState) -> bool:
    if state.traffic is None:
        return False
    return is_generative(state.versions[state.traffic.champion.version])


def _store_away(error: RegistryError) -> ApiRefusal:
    return ApiRefusal(f"the store does not answer: {error}", status=503, retry_after_s=1)
