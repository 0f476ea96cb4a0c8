"""Versions of language models: what one is made of, its prompt, and how it is registered.

The engines that answer for them are in `toque.functions.generative.engines`; it knows nothing of how they are served.
"""

from toque.functions.generative.declined import declines
from toque.functions.generative.guardrails import (
    AnswerCheck,
    Finding,
    Guardrail,
    Guardrails,
    RequestCheck,
    check_answer,
    check_request,
)
from toque.functions.generative.jobs import register_generative
from toque.functions.generative.prompt import (
    Example,
    GenerativeError,
    Prompt,
    PromptMessage,
    Variable,
    call_tool,
    difference,
)
from toque.functions.generative.template_arguments import TEMPLATE_ARGUMENTS, check_template_arguments
from toque.functions.generative.version_files import (
    ADAPTER,
    ADAPTER_FOLDER,
    CHAT,
    CHAT_TEMPLATE,
    PROMPT,
    SETTINGS,
    WEIGHTS,
    WEIGHTS_FOLDER,
    EngineSettings,
    engine_files,
    is_generative,
    read_prompt,
    read_settings,
    weights_in,
)

__all__ = [
    "ADAPTER",
    "ADAPTER_FOLDER",
    "CHAT",
    "CHAT_TEMPLATE",
    "PROMPT",
    "SETTINGS",
    "TEMPLATE_ARGUMENTS",
    "WEIGHTS",
    "WEIGHTS_FOLDER",
    "AnswerCheck",
    "EngineSettings",
    "Example",
    "Finding",
    "GenerativeError",
    "Guardrail",
    "Guardrails",
    "Prompt",
    "PromptMessage",
    "RequestCheck",
    "Variable",
    "call_tool",
    "check_answer",
    "check_request",
    "check_template_arguments",
    "declines",
    "difference",
    "engine_files",
    "is_generative",
    "read_prompt",
    "read_settings",
    "register_generative",
    "weights_in",
]
