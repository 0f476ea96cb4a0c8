"""Trainer of the tabular network; known without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toque.functions.training.tabular.settings import TabularSettings
from toque.functions.training.trainer import Trained

if TYPE_CHECKING:
    from toque.functions.training.request import TrainingRequest


class TabularParams(TabularSettings):
    """Trainer of the tabular network: how it is built and trained; the defaults are meant to be good without tuning."""

    def __call__(self, request: TrainingRequest) -> Trained:
        """Train the network, calibrate it and write it as a program."""
        from toque.functions.training.tabular.job import train_network  # late: torch and Ray Train

        return train_network(self, request)
