"""Generators of a workspace's models, opened by the first who asks."""

from __future__ import annotations

import asyncio
from typing import Any

from toque.ray_apps.generative.build import GenerativeModels


class Flaky(GenerativeModels):
    """Models of which the first try to open one fails."""

    tries = 0

    async def _open(self, model: str) -> Any:
        self.tries += 1
        await asyncio.sleep(0)
        if self.tries == 1:
            raise ConnectionError("the store is away")
        return f"{model} {self.tries}"


async def test_who_hears_late_of_a_failed_try_does_not_forget_the_next_one() -> None:
    models: Any = Flaky(None, None)  # type: ignore[arg-type]  # what opens is overridden

    async def ask_twice() -> Any:
        try:
            return await models.get("m")
        except ConnectionError:
            return await models.get("m")

    assert await asyncio.gather(ask_twice(), ask_twice(), ask_twice()) == ["m 2"] * 3
    assert await models.get("m") == "m 2"
    assert models.tries == 2
