"""Engines: programs that answer for weights over OpenAI's API, each in a supervised process on a private port."""

from functions.generative.engines.engine import Engine, EngineSpec, engine_of
from functions.generative.engines.environment import engine_environment
from functions.generative.engines.process import EngineDown, EngineProcess
from functions.generative.engines.running import EngineProcesses, Lease

__all__ = [
    "Engine",
    "EngineDown",
    "EngineProcess",
    "EngineProcesses",
    "EngineSpec",
    "Lease",
    "engine_environment",
    "engine_of",
]
