"""Recognises answers by which a language model declines to answer: "I'm sorry, but I can't help with that."

A heuristic over the first words of an answer: in English, and by the patterns that a model's policy adds. It is made for comparisons of
two versions on the same traffic, where what it overlooks or mistakes weighs on both alike; it is no filter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from toque.registry.text_patterns import count_matches

__all__ = ["declines"]

_READ: Final = 240
"""Characters of an answer in which it would decline: what comes later is a caveat of an answer that was given."""
_CANNOT: Final = (
    r"(?:can(?:no|')t|can not|cannot|couldn't|won't|will not|(?:am |'m |are |'re )?(?:not (?:able|allowed|permitted)|unable) to|"
    r"(?:have|need) to decline to|must decline to|decline to|don't feel comfortable)"
)
_DO: Final = (
    r"(?:help|assist|answer|provide|fulfil|fulfill|comply|discuss|share|give|create|write|generate|support|continue|"
    r"engage|offer|respond|do that|do this|tell you|talk about|doing|providing|helping|discussing|answering)"
)
_DECLINING: Final = re.compile(
    rf"\b(?:i|we) ?(?:really |also )?{_CANNOT} (?:\w+ ){{0,2}}?{_DO}\b"
    r"|\b(?:i|we) (?:must|have to) (?:refuse|decline)\b"
    r"|\bas an (?:ai|artificial)\b[^.!?]*\b(?:can't|cannot|can not|unable|not able|don't|do not)\b"
    r"|\bagainst (?:my|our) (?:guidelines|policy|policies|programming|principles)\b"
)
_FILTERED: Final = "content_filter"


def declines(message: Mapping[str, Any], finish_reason: str = "", also: Sequence[str] = ()) -> bool:
    """Whether a message of the assistant declines to answer; an engine that says so itself is believed.

    message: as of OpenAI's API. A call of a tool is an answer, whatever is said beside it. also: patterns of RE2 beside the English
    ones, as `ModelPolicy.declining` has them.
    """
    if message.get("refusal") or finish_reason == _FILTERED:
        return True
    content = message.get("content")
    if message.get("tool_calls") or not isinstance(content, str):
        return False
    begin = content[:_READ].replace("’", "'")
    return _DECLINING.search(begin.lower()) is not None or any(count_matches(each, begin) for each in also)
