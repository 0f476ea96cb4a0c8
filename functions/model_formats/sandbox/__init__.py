"""The first load of a model's files, in a process of its own with limits, before a process that serves loads them."""

from toque.functions.model_formats.sandbox.messages import SandboxLimits
from toque.functions.model_formats.sandbox.sandbox import Sandbox, SandboxFailed

__all__ = ["Sandbox", "SandboxFailed", "SandboxLimits"]
