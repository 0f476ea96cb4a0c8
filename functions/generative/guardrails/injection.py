"""Heuristics for texts that try to give a model other orders than its prompt: a first hurdle, and no proof that there are none."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["injection_families"]

_ORDERS: Final = (
    r"(?:instructions?|prompts?|directions?|directives?|guidelines?|rules|commands?|policies|orders|context)"
)
_BEFORE: Final = r"(?:previous|prior|above|earlier|preceding|foregoing|former|your|system|initial|original)"
_FAMILIES: Final = {
    "override": (
        rf"\b(?:ignore|disregard|forget|override|bypass|neglect|overlook|drop)\b[^.?!\n]{{0,30}}\b{_BEFORE}\b[^.?!\n]{{0,20}}\b{_ORDERS}\b",
        r"\b(?:ignore|disregard|forget)\b[^.?!\n]{0,20}\b(?:everything|all|anything)\b[^.?!\n]{0,20}\b(?:above|before|said|told|so far)\b",
        r"\b(?:ignoriere|vergiss|missachte)\b[^.?!\n]{0,30}\b(?:anweisung|vorgabe|regel|instruktion)",
        r"\b(?:ignore[zr]?|oublie[zr]?)\b[^.?!\n]{0,30}\binstructions?\b[^.?!\n]{0,20}\b(?:précédentes?|ci-dessus)",
        r"\b(?:ignora|olvida)\b[^.?!\n]{0,30}\binstrucciones\b",
    ),
    "new orders": (
        r"\b(?:new|real|actual|updated|revised)\s+(?:instructions?|task|orders?|rules|system prompt)\s*(?::|are\b|is\b)",
        r"\bfrom now on,?\s+(?:you|ignore|respond|answer|reply|act|always|never)\b",
        r"\byour (?:new|only|real|true) (?:task|goal|purpose|job|role|instruction)s?\b",
    ),
    "role": (
        (
            r"\b(?:you are|you're|act as|pretend (?:to be|you are)|behave (?:as|like)|roleplay as)\b[^.?!\n]{0,40}"
            r"\b(?:dan|unrestricted|unfiltered|uncensored|jailbroken|(?:without|no) (?:any )?(?:restrictions|rules|filters?|limits|guidelines))\b"
        ),
        r"\bdo anything now\b|\bjailbreak(?:ed)? mode\b|\b(?:developer|debug|god|admin|sudo) mode\b[^.?!\n]{0,20}\b(?:on|enabled?|activated?)\b",
        r"\b(?:enable|activate|enter|switch to)\b[^.?!\n]{0,15}\b(?:developer|god|jailbreak|unrestricted|dan) mode\b",
    ),
    "leak": (
        (
            r"\b(?:reveal|print|show|repeat|output|display|tell|give|write|leak|copy|translate|summari[sz]e|what(?:'s| is| are| were| was))\b"
            r"[^.?!\n]{0,40}\b(?:your|the)\b[^.?!\n]{0,12}\b(?:system|initial|hidden|secret|original|internal|confidential)\b[^.?!\n]{0,12}"
            rf"\b(?:{_ORDERS}|message)\b"
        ),
        r"\brepeat\b[^.?!\n]{0,25}\b(?:words|text|everything|all)\b[^.?!\n]{0,10}\babove\b",
        r"\b(?:reveal|print|repeat|show me|output)\b[^.?!\n]{0,15}\byour (?:instructions|prompt|guidelines)\b",
    ),
    "markers": (
        r"<\|[a-z_]{2,30}\|>|\[/?INST\]|<</?SYS>>|</?(?:system|assistant)>",
        r"(?:^|\n)\s*(?:#{1,4}\s*)?(?:system|assistant)\s*(?:prompt|message)?\s*:",
        r"(?:^|\n)\s*#{2,4}\s*(?:new )?instructions?\b",
    ),
    "encoded": (r"\b(?:decode|base64|rot13|hex)\b[^\n]{0,80}\b(?:follow|execute|obey|run|carry out|do what)\b",),
}  # fmt: skip
_COMPILED: Final = {
    name: [re.compile(each, re.IGNORECASE) for each in patterns] for name, patterns in _FAMILIES.items()
}


def injection_families(text: str) -> list[str]:
    """Name the kinds of injection that a text looks like; few texts that mean no harm look like two."""
    return [name for name, patterns in _COMPILED.items() if any(each.search(text) for each in patterns)]
