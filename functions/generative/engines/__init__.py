"""Engines: programs that answer for weights over OpenAI's API, each in a supervised process on a private port."""

from toque.functions.generative.engines.engine import (
    Engine,
    EngineDown,
    EngineRefusal,
    EngineSpec,
    engine_environment,
)
from toque.functions.generative.engines.process import (
    EngineProcess,
    Patience,
    QueueFull,
    Slot,
    ask_embeddings,
)
from toque.functions.generative.engines.programs import engine_of
from toque.functions.generative.engines.running import EngineProcesses, Lease, scratch_folder, sweep_scratch

__all__ = [
    "Engine",
    "EngineDown",
    "EngineProcess",
    "EngineProcesses",
    "EngineRefusal",
    "EngineSpec",
    "Lease",
    "Patience",
    "QueueFull",
    "Slot",
    "ask_embeddings",
    "engine_environment",
    "engine_of",
    "scratch_folder",
    "sweep_scratch",
]
