"""How often the language of a sentence is told rightly, by the translations that a Debian machine carries.

Reads messages of 60 to 300 characters from /usr/share/locale, at most 1,500 of each
language, and prints the share that is told, that is called unknown, and that is taken for another language.
"""

from __future__ import annotations

import gettext
import re
import time
from collections import Counter
from pathlib import Path
from typing import Final

from toque.functions.monitoring.language.figures import UNKNOWN, language_of
from toque.load.benchmarks.harness import main, say

_LOCALES: Final = Path("/usr/share/locale")
_LANGUAGES: Final = (
    "de fr es it pt nl sv da pl cs tr ro fi hu id vi ru bg uk ja ko zh_CN el he fa ar hi th ka en_GB"
)
_SHORTEST, _LONGEST, _MOST = 60, 300, 1_500
_NO_WORDS: Final = re.compile(r"%[-a-z0-9.$*]+|<[^>]*>")


def run() -> None:
    """Print a line for each language."""
    for name in _LANGUAGES.split():
        texts = messages(name)
        count, begin = max(1, len(texts)), time.perf_counter()
        answers = Counter(map(language_of, texts))
        each_us = (time.perf_counter() - begin) / count * 1e6
        right, unknown = answers[name[:2]], answers[UNKNOWN]
        shares = (right / count, unknown / count, (len(texts) - right - unknown) / count)
        text = "told {:.3f}, unknown {:.3f}, another {:.3f}".format(*shares)
        say(f"{name}: {len(texts)} messages, {text}, {each_us:.0f} us each")


def messages(name: str) -> list[str]:
    """Translations of a language that are as long as sentences, without placeholders and tags."""
    found: set[str] = set()
    for file in sorted((_LOCALES / name / "LC_MESSAGES").glob("*.mo")):
        with file.open("rb") as opened:
            catalog = gettext.GNUTranslations(opened)._catalog  # type: ignore[attr-defined]  # noqa: SLF001 - it has no other way to list
        for key, text in catalog.items():
            if key and isinstance(text, str) and text != key and _SHORTEST <= len(text) <= _LONGEST:
                found.add(_NO_WORDS.sub("", text))
    return sorted(found)[:_MOST]


if __name__ == "__main__":
    main(run)
