"""Figures of a language model's requests and answers, by which a later time is held against an earlier one.

Of the texts: lengths, languages, whether the model declined; of all: tokens, why the answer ended, the time of the first token, and the
cost where tokens have a price. None of them is a text. A language is told by a text's script and its commonest words: a heuristic
for shares that are compared over time, and not for one text. A short one, such as a name or a number, has none here.
What it mistakes it mistakes alike in every window.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import polars as pl
import pyarrow as pa

from toque.functions.generative import declines, is_generative
from toque.functions.monitoring.drift.answers import ANSWERED, AnswerMonitor, answer_table, watch_version
from toque.functions.monitoring.language.sample import (
    LanguageMonitors,
    LoggedAnswer,
    Sample,
    monitors_journal,
)
from toque.functions.monitoring.watch import MonitorResult, ReadRows, monitor_run
from toque.functions.prediction_log import predictions
from toque.functions.runtime.context import context
from toque.registry import ModelVersion

FIGURES: Final = pa.schema(
    [
        pa.field("predicted_at", pa.timestamp("us", tz="UTC")),
        pa.field("prompt length", pa.float64()),
        pa.field("prompt tokens", pa.float64()),
        pa.field("prompt language", pa.string()),
        pa.field("answer length", pa.float64()),
        pa.field("answer tokens", pa.float64()),
        pa.field("answer language", pa.string()),
        pa.field("declined", pa.string()),
        pa.field("ended by", pa.string()),
        pa.field("first token ms", pa.float64()),
        pa.field("cost", pa.float64()),
    ]
)
"""Columns that are compared, a row an answer. Lengths are in characters: of what was asked last, and of the answer."""
_CHUNK: Final = 2_000
"""Answers whose texts are held."""


def watch_drift_of_answers(model: str, monitor: AnswerMonitor) -> MonitorResult:
    """Compare the answers of a model's champion with those of its own first days, as the function `watch_answers` does."""
    champion = context().registry().find_version(model, "champion")
    if champion is None:
        return MonitorResult(model=model, monitor=monitor.kind, text="no champion serves this model")
    return watch_version(monitor_run(model), champion, monitor, _answers_of(champion))


def _answers_of(champion: ModelVersion) -> ReadRows:
    """Make the reader of what is compared of a version's answers."""
    used, model = context(), champion.model
    if not is_generative(champion):
        return lambda start, end: answer_table(
            predictions(used.store, model, start, end, columns=ANSWERED), champion
        )
    monitors = monitors_journal(used.store, model, actor=used.actor).refresh().monitors
    settings, policy = monitors or LanguageMonitors(share=1.0), used.registry().get_model(model).policy
    return lambda start, end: figure_table(
        settings.sample(used.store, model, policy, start, end), champion.version
    )


def figure_table(sample: Sample, version: int) -> pa.Table:
    """Read the figures of a version's sampled answers to callers, in order of time; without those that no answer has."""
    chosen = sample.answered().filter((pl.col("version") == version) & ~pl.col("shadow"))
    rows = [
        _figures(answer, sample.declining)
        for part in chosen.iter_slices(_CHUNK)
        for answer in sample.read(part).values()
        if answer.version == version and not answer.shadow
    ]
    table = pa.Table.from_pylist(rows, schema=FIGURES).sort_by([("predicted_at", "ascending")])
    return table.select(
        [name for name in table.column_names if table[name].null_count < table.num_rows or not rows]
    )


def _figures(answer: LoggedAnswer, declining: Sequence[str]) -> dict[str, Any]:
    asked, said, message = answer.question, answer.text, answer.message
    prompt_tokens, _, answer_tokens = answer.tokens
    return {
        "predicted_at": answer.predicted_at,
        "prompt length": None if asked is None else len(asked),
        "prompt tokens": _number(prompt_tokens),
        "prompt language": None if asked is None else language_of(asked),
        "answer length": None if said is None else len(said),
        "answer tokens": _number(answer_tokens),
        "answer language": None if said is None else language_of(said),
        "declined": None
        if message is None
        else ("yes" if declines(message, answer.finish_reason, declining) else "no"),
        "ended by": answer.finish_reason or None,
        "first token ms": _number(answer.timings_ms[0]),
        "cost": _number(answer.cost),
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


UNKNOWN: Final = "unknown"
_READ_CHARACTERS: Final = 400
"""Characters that are looked at: the first ones say it."""
_LETTERS: Final = re.compile(r"[^\W\d_]+")
_SCRIPTS: Final = (
    ("ja", re.compile(r"[\u3040-\u30ff]")),  # before Chinese, whose characters it has too
    ("ko", re.compile(r"[\uac00-\ud7af\u1100-\u11ff]")),
    ("zh", re.compile(r"[\u4e00-\u9fff\u3400-\u4dbf]")),
    ("el", re.compile(r"[\u0370-\u03ff]")),
    ("he", re.compile(r"[\u0590-\u05ff]")),
    ("fa", re.compile(r"[\u067e\u0686\u0698\u06af\u06a9\u06cc]")),  # letters that Arabic has not
    ("ar", re.compile(r"[\u0600-\u06ff]")),
    ("hi", re.compile(r"[\u0900-\u097f]")),
    ("bn", re.compile(r"[\u0980-\u09ff]")),
    ("ta", re.compile(r"[\u0b80-\u0bff]")),
    ("th", re.compile(r"[\u0e00-\u0e7f]")),
    ("ka", re.compile(r"[\u10a0-\u10ff]")),
    ("uk", re.compile(r"[іїєґІЇЄҐ]")),
    ("cyrillic", re.compile(r"[\u0400-\u04ff]")),
)
_MANY: Final = 0.2
"""Share of the letters in a script from which a text is of it: a word of another may stand in any."""
_FEW: Final = 0.02
"""The same for letters that tell languages of one script apart, which come rarely."""
_RARE: Final = frozenset({"fa", "uk"})
_WORDS: Final[Mapping[str, str]] = {
    "en": "the of and to is in that it you for was on are with as be this have not what how can my your from they at or which",
    "de": "der die das und ist nicht ich ein eine zu mit den von auf für wie sie es im dem des wird sich auch was kann wir bei oder",
    "fr": "le la les l d qu des et est une un que qui dans pour pas ce vous je il sur avec du au en ne sont plus comment quel être par ou",
    "es": "el la los las de que y en un una es por con para no se del lo como qué está su más al cómo son mi pero o",
    "it": "il di che è e la un una per non in sono con del della come le si gli dei da al ho nel cosa questo anche più i",
    "pt": "o a de que e do da em um uma para não é com os no na por se como mais você das dos ao são está foi ou",
    "nl": "de het een en van is ik niet dat in te op voor met zijn er aan je hoe wat ook als naar of deze wordt bij kan om",
    "sv": "och att det som en är på av för med jag inte den till ett har de om hur vad kan du i var från eller så när ska",
    "da": "og at det som en er på af for med jeg ikke den til et har de om hvordan hvad kan du i var fra eller så når skal",
    "pl": "i w na nie się z do to jest jak że o co po przez dla czy od są tym który a za oraz jego może być mam ma",
    "cs": "a je v se na to že s jak pro do by co jsem ale tak za podle nebo o si který jako po jsou není být při z",
    "tr": "bir ve bu için ne ile da de olarak nasıl çok daha var mı mi değil ben gibi olan kadar sonra en her veya ama şu",
    "ro": "și în de la cu nu pe este un o să ce care din mai pentru că cum sunt am fi sau prin le se al ale dar",
    "fi": "ja on ei se että en hän mutta kun niin ovat mitä miten oli joka tai voi sen minä ole kuin mikä myös jos tämä",
    "hu": "a az és hogy nem egy van is ez meg de mi ha csak mint volt azt vagy már el ki hogyan miért lehet szerint",
    "id": "yang dan di dari ini itu dengan untuk tidak dalam pada saya adalah akan bisa atau apa ke ada bagaimana oleh juga",
    "vi": "và của là có không cho được trong một với các người những này để khi như đã tôi làm thế nào bạn về",
}
_CYRILLIC: Final[Mapping[str, str]] = {
    "ru": "и в не на что я с как это по но из у за от так же для вы он она мы или бы если чтобы к о при",
    "bg": "и на да се от за е не са с че по това как ще като или си към при съм което",
}
_OWN_LETTERS: Final[Mapping[str, str]] = {
    "de": "ßäöü", "fr": "œêèùç", "es": "ñ", "it": "ìò", "pt": "ãõç", "sv": "åäö", "da": "øå", "pl": "łżśńęąź", "cs": "řěů", "tr": "ğış",
    "ro": "țșăşţ", "fi": "äö", "hu": "őű", "vi": "ơưđạảấầậếềểễệịọốồổộớờợụứừữự", "ru": "ыэё", "bg": "ъ",
}  # fmt: skip
"""Letters that few languages of a script have: a word with one counts as a common word does."""
_WORD_SETS: Final = {name: frozenset(words.split()) for name, words in (*_WORDS.items(), *_CYRILLIC.items())}


def language_of(text: str) -> str:
    """Find the language of a text as its two-letter code, or `UNKNOWN`.

    Of the Latin script 17 languages are told by their commonest words and own letters, Russian and Bulgarian of the Cyrillic, and 13 by their script and its letters.
    """
    letters = _LETTERS.findall(text[:_READ_CHARACTERS].casefold())
    count = sum(map(len, letters))
    if not count:
        return UNKNOWN
    joined = "".join(letters)
    for name, script in _SCRIPTS:
        if len(script.findall(joined)) > count * (_FEW if name in _RARE else _MANY):
            return _by_words(letters, _CYRILLIC) if name == "cyrillic" else name
    return _by_words(letters, _WORDS)


def _by_words(words: list[str], known: Mapping[str, str]) -> str:
    """Choose the language with most of the words; `UNKNOWN` if none has one, or two have as many."""
    found: Counter[str] = Counter()
    for word, times in Counter(words).items():
        for language in known:
            own = _OWN_LETTERS.get(language, "")
            found[language] += times * ((word in _WORD_SETS[language]) + any(each in word for each in own))
    (best, most), (_, next_most) = found.most_common(2)
    return best if most > next_most else UNKNOWN


__all__ = ["FIGURES", "UNKNOWN", "figure_table", "language_of", "watch_drift_of_answers"]
