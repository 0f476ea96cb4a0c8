"""Personal data in a text: patterns for what may be some, and checks of digits that tell a card or an account from any number.

Names and addresses have no pattern and are not found. Every pattern is bounded, so that no text takes long.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final, Literal

__all__ = ["KINDS", "PersonalData", "mask", "spans"]

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


def _any(_: str) -> bool:
    return True


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
    "email": (_EMAIL, _any),
    "iban": (_IBAN, _is_iban),
    "card": (_CARD, _is_card),
    "ip_address": (_IP, _is_ip),
    "phone": (_PHONE, _is_phone),
}
KINDS: Final[tuple[PersonalData, ...]] = tuple(_PATTERNS)


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
