"""Arguments of a chat template beside the messages, as the field `chat_template_kwargs` of vLLM, SGLang and llama.cpp has them.

Engines lay them over the names that they give a template themselves: `messages` among them would replace those of the request, which
guardrails have read. So names of that machinery are refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, Final

__all__ = ["TEMPLATE_ARGUMENTS", "check_template_arguments", "with_texts"]

TEMPLATE_ARGUMENTS: Final = "chat_template_kwargs"
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_MOST_NAMES, _MOST_BYTES, _MOST_DEPTH = 32, 16 << 10, 4
_RESERVED: Final = frozenset(
    {
        # what engines give a template, and transformers' `apply_chat_template`, by which vLLM renders one, takes
        "messages", "conversation", "tools", "tool_choice", "chat_template", "add_generation_prompt", "continue_final_message",
        "tokenize", "tokenizer", "padding", "truncation", "max_length", "return_tensors", "return_dict",
        "return_assistant_tokens_mask", "tokenizer_kwargs", "template_kwargs", "additional_special_tokens", "response_format",
        # what a template calls
        "raise_exception", "strftime_now", "namespace", "range", "dict", "lipsum", "cycler", "joiner", "loop", "self", "caller",
        "varargs", "kwargs", "true", "false", "none", "True", "False", "None",
    }
)  # fmt: skip
_SPECIAL_TOKEN: Final = "_token"  # noqa: S105  # end of a name, as in bos_token
_LARGEST: Final = 1 << 63


def check_template_arguments(arguments: Any) -> None:
    """Check names, values and size. Raises: ValueError, naming the field."""
    field = TEMPLATE_ARGUMENTS
    if not isinstance(arguments, dict):
        raise ValueError(f"{field}: expected an object, got {arguments!r:.80}")  # noqa: TRY004  # a value of a request
    if len(arguments) > _MOST_NAMES:
        raise ValueError(f"{field}: at most {_MOST_NAMES} names, got {len(arguments)}; leave some out")
    for name, value in arguments.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"{field}: expected names of up to 64 letters, digits and _, got {name!r:.80}; name what the chat template reads"
            )
        if name in _RESERVED or name.endswith(_SPECIAL_TOKEN):
            raise ValueError(
                f"{field}.{name}: got {value!r:.80}, and this name is the template's own or the engine's; leave it out, and send "
                "messages and tools by the fields of those names"
            )
        _check_value(value, f"{field}.{name}", depth=1)
    size = len(json.dumps(arguments, ensure_ascii=False).encode(errors="replace"))
    if size > _MOST_BYTES:
        raise ValueError(f"{field}: at most {_MOST_BYTES} bytes, got {size}; send long texts as messages")


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Change the texts of a value, at any depth, and the names in it: a template may write those too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [with_texts(item, change) for item in value]
    if isinstance(value, dict):
        return {change(name): with_texts(item, change) for name, item in value.items()}
    return value


def _check_value(value: Any, where: str, *, depth: int) -> None:
    if depth > _MOST_DEPTH:
        raise ValueError(f"{where:.200}: nested deeper than {_MOST_DEPTH}; flatten it")
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise ValueError(f"{where:.200}: expected a text as the name, got {name!r:.80}")  # noqa: TRY004  # as above
            _check_value(item, f"{where}.{name:.64}", depth=depth + 1)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            _check_value(item, f"{where}[{place}]", depth=depth + 1)
    elif not _is_plain(value):
        raise ValueError(f"{where:.200}: expected JSON with numbers of 64 bits, got {value!r:.80}")


def _is_plain(value: Any) -> bool:
    if isinstance(value, int):
        return -_LARGEST <= value < _LARGEST
    return value is None or isinstance(value, str) or (isinstance(value, float) and math.isfinite(value))
