"""Settings by which a language model's live answers are watched, one a model, in a journal of its own."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from toque.functions.evaluation.language import Judge, Scorer
from toque.functions.monitoring.drift.answers import AnswerMonitor
from toque.functions.monitoring.language.sample import Sample
from toque.registry import Entry, Fold, Journal, ModelPolicy, ObjectStore

__all__ = ["LanguageMonitors", "monitors_journal", "watched_models"]

_FOLDER = "language_monitors"


class LanguageMonitors(BaseModel):
    """What is watched of a language model's live answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = Field(
        default=0.1,
        gt=0.0,
        le=1.0,
        description="Share of the answers that is looked at, chosen by a hash of their ids.",
    )
    scorers: tuple[Scorer, ...] = Field(
        default=(),
        max_length=20,
        description="Scorers of single answers; those that need an expected text wait for a label that is one.",
    )
    judge: Judge | None = Field(
        default=None,
        description="Judge that compares the answers of shadows with what callers were answered; none unless given.",
    )
    lookback: timedelta = Field(
        default=timedelta(days=1),
        gt=timedelta(0),
        le=timedelta(days=31),
        description="How long after an answer it is still scored, and a label waited for; at most 31 days.",
    )
    drift: AnswerMonitor | None = Field(
        default=AnswerMonitor(),
        description="Monitor of drift of what is asked and answered; null: not watched.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [each.label for each in self.scorers] + (["judge"] if self.judge is not None else [])
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"scorers: {twice} are named twice; give each a name")
        if any(each.kind == "likelihood" for each in self.scorers):
            raise ValueError(
                "scorers: kind='likelihood' is not a score of answers that were given; leave it out"
            )
        return self

    def sample(
        self, store: ObjectStore, model: str, policy: ModelPolicy, start: datetime, end: datetime
    ) -> Sample:
        """Sample the model's answers in [start, end): where the policy has the log keep fewer texts, of those that have theirs."""
        return Sample(store, model, self.share_of(policy), start, end, policy.declining)

    def share_of(self, policy: ModelPolicy) -> float:
        """Share of the model's answers that is looked at: no larger than that of which the log keeps the texts."""
        return min(self.share, policy.keep_texts) or self.share


class _Setting(BaseModel):
    """What a journal of settings comes to. monitors: None before the first entry, and where watching was ended."""

    model_config = ConfigDict(frozen=True)

    monitors: LanguageMonitors | None = None


def monitors_journal(store: ObjectStore, model: str, *, actor: str) -> Fold[_Setting]:
    """Open the settings of a model, and what they were before."""
    return Fold(
        Journal(store, f"{_FOLDER}/{model}", actor=actor),
        _Setting(),
        _fold_entry,
        encode=_Setting.model_dump_json,
        decode=_Setting.model_validate_json,
    )


def watched_models(store: ObjectStore) -> Iterator[str]:
    """Iterate over the models that have settings, ended ones included, by one listing for each."""
    prefix, after = f"{_FOLDER}/", ""
    while key := next(iter(store.list(prefix, after=after)), None):
        name = key.removeprefix(prefix).partition("/")[0]
        yield name
        after = f"{prefix}{name}0"  # the code point after "/": past all keys of this journal


def _fold_entry(_: _Setting, entry: Entry) -> _Setting:
    return _Setting.model_validate(entry.body)
