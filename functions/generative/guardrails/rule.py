"""One rule on a text: what it finds there, and what follows.

Personal data are found by patterns, and by the check digits that tell a card or an account from any number; names and addresses
have no pattern and are not found. Every pattern is bounded, so that no text takes long. What looks for texts that try to
give a model other orders than its prompt is a first hurdle, and no proof that there are none.
"""

from __future__ import annotations

import functools
import ipaddress
import json
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, Field, model_validator

from toque.registry.text_patterns import check_pattern, count_matches, replace_matches

PersonalData = Literal["email", "phone", "card", "iban", "ip_address"]

_EMAIL: Final = re.compile(r"[\w.%+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,6}")
_IBAN: Final = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_CARD: Final = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d.]\d)")
_IP: Final = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7})(?![\w:]|\.\d)"
)
_PHONE: Final = re.compile(
    r"(?<![\w+.])(?<!\d[ -])(?:\+\d{1,3}[ ./-]?(?:\(0\))?(?:\(?\d{1,4}\)?[ ./-]?){2,5}\d{2,4}"  # international
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4}"  # North America
    r"|0\d{2,4}[ /-]\d{3,4}(?:[ -]?\d{2,4}){1,2})(?!\w|[ .-]?\d)"  # with an area code
)
_PHONE_DIGITS: Final = range(8, 16)  # at most as E.164 has them
_LUHN, _MOD_97 = 10, 97
_OWN_FIELD: Final = {
    "max_length": ("length",),
    "patterns": ("deny", "allow"),
    "json_schema": ("json_schema",),
    "data": ("personal_data",),
    "threshold": ("injection",),
}
_NEEDED: Final = {
    "length": "max_length",
    "deny": "patterns",
    "allow": "patterns",
    "json_schema": "json_schema",
}
_MASKING: Final = frozenset({"personal_data", "deny"})
_REMOVED: Final = "[removed]"


def _is_card(text: str) -> bool:
    """Whether the check digit is right, by Luhn; of a number that is not made of one digit alone."""
    digits = [int(each) for each in text if each.isdigit()]
    doubled = [sum(divmod(2 * each, 10)) for each in digits[-2::-2]]
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % _LUHN == 0


def _is_iban(text: str) -> bool:
    """Whether the check digits are right. Source: ISO 13616."""
    plain = text.replace(" ", "")
    return int("".join(str(int(each, 36)) for each in plain[4:] + plain[:4])) % _MOD_97 == 1


def _is_phone(text: str) -> bool:
    return sum(each.isdigit() for each in text) in _PHONE_DIGITS


def _is_ip(text: str) -> bool:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (found.is_unspecified or found.is_loopback)


# In the order in which they are masked: digits of a card or an account are no phone number.
_PATTERNS: Final[Mapping[PersonalData, tuple[re.Pattern[str], Callable[[str], bool]]]] = {
    "email": (_EMAIL, lambda _: True),
    "iban": (_IBAN, _is_iban),
    "card": (_CARD, _is_card),
    "ip_address": (_IP, _is_ip),
    "phone": (_PHONE, _is_phone),
}
KINDS: Final[tuple[PersonalData, ...]] = tuple(_PATTERNS)


class Guardrail(BaseModel, frozen=True, extra="forbid"):
    """A rule on what is asked or answered.

    It finds, by its kind: `length` more than `max_length` characters in all; `personal_data` such as `data` lists; `deny`
    one of `patterns`; `allow` none of them; `json_schema` an answer that is not JSON of that schema; `injection` text that
    looks like orders to the model, by at least `threshold` of its heuristics.
    """

    kind: Literal["length", "personal_data", "deny", "allow", "json_schema", "injection"] = Field(
        description="What the rule finds."
    )
    name: str = Field(
        default="", max_length=60, description="Name in the log and to the caller; the kind unless given."
    )
    action: Literal["refuse", "redact", "flag"] = Field(
        default="refuse",
        description=(
            "What follows: refuse it; redact what is found and go on (`personal_data` and `deny` alone); "
            "or flag it in the log and the series."
        ),
    )
    max_length: int | None = Field(
        le=100_000_000,
        default=None,
        ge=1,
        description="For `length`, which needs it: characters of all texts together at most.",
    )
    patterns: tuple[str, ...] = Field(
        default=(),
        max_length=1_000,
        description=(
            "For `deny` and `allow`, which need them: regular expressions of RE2, which find either case, "
            "in time linear in the text."
        ),
    )
    data: tuple[PersonalData, ...] = Field(
        default=KINDS, description="For `personal_data`: the kinds that are found; all unless given."
    )
    json_schema: dict[str, Any] | None = Field(
        default=None,
        description="For `json_schema`, which needs it: JSON Schema of the answer, with no `$ref` elsewhere.",
    )
    threshold: int = Field(
        default=1,
        ge=1,
        le=6,
        description="For `injection`: heuristics that a text must meet to be found; few harmless texts meet two.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for field, kinds in _OWN_FIELD.items():
            if field in self.model_fields_set and self.kind not in kinds:
                raise ValueError(f"{field} with kind={self.kind!r}: it belongs to {' or '.join(kinds)}")
        needed = _NEEDED.get(self.kind)
        if needed and not getattr(self, needed):
            raise ValueError(f"kind={self.kind!r} needs {needed}")
        if self.action == "redact" and self.kind not in _MASKING:
            raise ValueError(
                f"action='redact' with kind={self.kind!r}: only {sorted(_MASKING)} know what to mask"
            )
        for pattern in self.patterns:
            check_pattern(pattern, field="patterns")
        if self.json_schema is not None:
            check_schema(self.json_schema)
        return self

    @property
    def label(self) -> str:
        """Name of the rule in the log and to the caller."""
        return self.name or self.kind

    def find(self, text: str) -> int:
        """Count what the rule finds in a text that `plain` has made comparable; 0: it has nothing against it."""
        return _FINDERS[self.kind](self, text)

    def masked(self, text: str) -> str:
        """Mask what the rule finds; the text as it is for a rule that knows no place of it."""
        if self.kind == "personal_data":
            return mask(text, spans(text, self.data))
        if self.kind == "deny":
            for pattern in self.patterns:
                text = replace_matches(pattern, text, _REMOVED)
        return text


def plain(text: str) -> str:
    """Make a text comparable: compatibility forms of letters become the usual ones, and invisible characters go."""
    if text.isascii():
        return text
    return "".join(each for each in unicodedata.normalize("NFKC", text) if unicodedata.category(each) != "Cf")


def _find_injection(rule: Guardrail, text: str) -> int:
    found = len(injection_families(text))
    return found if found >= rule.threshold else 0


_FINDERS: Final[dict[str, Callable[[Guardrail, str], int]]] = {
    "length": lambda rule, text: int(len(text) > (rule.max_length or 0)),
    "personal_data": lambda rule, text: len(spans(text, rule.data)),
    "deny": lambda rule, text: sum(count_matches(each, text) for each in rule.patterns),
    "allow": lambda rule, text: int(not any(count_matches(each, text) for each in rule.patterns)),
    "json_schema": lambda rule, text: int(not fits_schema(text, rule.json_schema or {})),
    "injection": _find_injection,
}


def spans(text: str, kinds: Collection[PersonalData] = KINDS) -> list[tuple[int, int, PersonalData]]:
    """Find personal data: begin, end and kind of each, in the order of the text; none overlaps another."""
    found: list[tuple[int, int, PersonalData]] = []
    for kind, (pattern, is_one) in _PATTERNS.items():
        if kind in kinds:
            found += [
                (*each.span(), kind)
                for each in pattern.finditer(text)
                if is_one(each[0])
                and not any(begin < each.end() and each.start() < end for begin, end, _ in found)
            ]
    return sorted(found)


def mask(text: str, found: list[tuple[int, int, PersonalData]]) -> str:
    """Put the kind in brackets in place of each find."""
    return "".join(_pieces(text, found))


def _pieces(text: str, found: list[tuple[int, int, PersonalData]]) -> Iterator[str]:
    at = 0
    for begin, end, kind in found:
        yield text[at:begin]
        yield f"[{kind}]"
        at = end
    yield text[at:]


def check_schema(schema: dict[str, Any]) -> None:
    """Check that a schema is one, and looks nothing up elsewhere. Raises: ValueError."""
    from jsonschema import SchemaError  # late: only prompts with such a rule need it

    try:
        _validator(json.dumps(schema, sort_keys=True))
    except SchemaError as error:
        raise ValueError(f"json_schema: {error.message}") from error
    if outside := [each for each in _references(schema) if not each.startswith("#")]:
        raise ValueError(f"json_schema: $ref {outside[0]!r:.80} is elsewhere; put it under $defs")


def fits_schema(text: str, schema: dict[str, Any]) -> bool:
    """Whether a text is JSON of a schema."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return bool(_validator(json.dumps(schema, sort_keys=True)).is_valid(found))


@functools.lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    from jsonschema.validators import Draft202012Validator, validator_for

    found = json.loads(schema)
    kind = validator_for(found, default=Draft202012Validator)
    kind.check_schema(found)
    return kind(found)


def _references(schema: Any) -> list[str]:
    if isinstance(schema, list):
        return [each for item in schema for each in _references(item)]
    if not isinstance(schema, dict):
        return []
    own = [each for name in ("$ref", "$dynamicRef") if isinstance(each := schema.get(name), str)]
    return own + [each for value in schema.values() for each in _references(value)]


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
_INJECTIONS: Final = {
    name: [re.compile(each, re.IGNORECASE) for each in patterns] for name, patterns in _FAMILIES.items()
}


def injection_families(text: str) -> list[str]:
    """Name the kinds of injection that a text looks like; few texts that mean no harm look like two."""
    return [name for name, patterns in _INJECTIONS.items() if any(each.search(text) for each in patterns)]


__all__ = [
    "KINDS",
    "Guardrail",
    "PersonalData",
    "check_schema",
    "fits_schema",
    "injection_families",
    "mask",
    "plain",
    "spans",
]
