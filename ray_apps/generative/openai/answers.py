"""Answers of an engine as they are passed on: under the prediction's id and the registered name, and kept for the log.

A stream of a chat also becomes the events of OpenAI's Responses API.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from toque.functions.generative import declines
from toque.functions.generative.engines import EngineDown
from toque.ray_apps.generative.openai.requests import COMPLETION
from toque.ray_apps.generative.openai.responses import call_item, items_of, response_of, text_item, text_part

_END: Final = b"\n\n"
_DATA: Final = b"data: "
_DONE: Final = b"[DONE]"
_FIRST_PIECE: Final = ("content", "tool_calls", "reasoning_content")


@dataclass(slots=True)
class AnswerRecord:
    """What the log keeps of an answer.

    first_token_s: from the request's beginning; NaN if nothing came. between_tokens_s: on average; 0 if there is but one.
    """

    message: dict[str, Any] = field(default_factory=dict)
    finish_reason: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    first_token_s: float = math.nan
    between_tokens_s: float = math.nan

    @property
    def is_empty(self) -> bool:
        """Whether the message says nothing and calls nothing."""
        return not any(self.message.get(name) for name in _FIRST_PIECE)

    def declines(self, also: Sequence[str] = ()) -> bool:
        """Whether the model declined to answer. also: patterns of its policy."""
        return declines(self.message, self.finish_reason, also)

    def count(self, usage: Mapping[str, Any]) -> None:
        """Take the numbers of tokens from an engine's usage."""
        self.prompt_tokens = int(usage.get("prompt_tokens") or 0)
        self.completion_tokens = int(usage.get("completion_tokens") or 0)
        self.cached_tokens = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


class EventStream:
    """Stream of server-sent events on its way from the engine to the caller.

    answer_id, model: what the caller sees in place of the engine's. wants_usage: whether the event with the usage, which every
    engine is asked for, is passed on. begin_s: when the request came, on the caller's clock.
    """

    def __init__(self, answer_id: str, model: str, *, wants_usage: bool, begin_s: float) -> None:
        self._id, self._model = answer_id, model
        self._wants_usage, self._begin_s = wants_usage, begin_s
        self._rest = b""
        self._renamed: list[tuple[bytes, bytes]] = []
        self._knows_id = False
        self._created, self._is_text = 0, False
        self._characters = 0
        self._texts: dict[str, list[str]] = {}
        self._calls: dict[int, dict[str, Any]] = {}
        self._last_s = math.nan
        self.record = AnswerRecord()
        self.done = False
        self.pieces = 0
        """Pieces of the answer so far, each of a token or more."""

    def feed(self, data: bytes, now_s: float) -> bytes:
        """Take what the engine sent, and return what goes to the caller now; all but what `last` gives."""
        *events, self._rest = (self._rest + data).split(_END)
        return b"".join([piece for event in events if (piece := self._pass_on(event, now_s))])

    def finish(self) -> AnswerRecord:
        """Complete the record once the engine has sent all. Raises: EngineDown if that does not end as answers do."""
        if not self.done:
            raise EngineDown("it ended before the answer did")
        found = self.record
        message: dict[str, Any] = {"role": "assistant"}
        message |= {name: "".join(pieces) for name, pieces in self._texts.items()}
        if self._calls:
            message["tool_calls"] = [self._calls[index] for index in sorted(self._calls)]
        found.message = message
        if not math.isnan(found.first_token_s):
            gaps = max(1, found.completion_tokens - 1)
            found.between_tokens_s = (self._last_s - self._begin_s - found.first_token_s) / gaps
        return found

    def last(self) -> bytes:
        """The last event, once the answer is complete."""
        return _DATA + _DONE + _END

    def failed(self, error: bytes) -> bytes:
        """The last event of an answer that could not be completed. error: the document of a refusal."""
        return _DATA + error + _END

    def rewritten(self, answer: AnswerRecord) -> bytes:
        """Write an answer anew as events, all but `last`: what was fed must not leave as it came."""
        shared: dict[str, Any] = {"id": self._id, "created": self._created, "model": self._model}
        if self._is_text:
            choice = {
                "index": 0,
                "text": answer.message.get("content") or "",
                "finish_reason": answer.finish_reason,
            }
            pieces: list[dict[str, Any]] = [{**shared, "object": "text_completion", "choices": [choice]}]
        else:
            calls = [{"index": at, **call} for at, call in enumerate(answer.message.get("tool_calls") or ())]
            delta = {**answer.message, **({"tool_calls": calls} if calls else {})}
            choices = (
                {"index": 0, "delta": delta, "finish_reason": None},
                {"index": 0, "delta": {}, "finish_reason": answer.finish_reason},
            )
            pieces = [{**shared, "object": "chat.completion.chunk", "choices": [each]} for each in choices]
        if self._wants_usage:
            usage = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}
            usage["total_tokens"] = sum(usage.values())
            pieces.append({**pieces[0], "choices": [], "usage": usage})
        return b"".join(_DATA + orjson.dumps(each) + _END for each in pieces)

    def _pass_on(self, event: bytes, now_s: float) -> bytes:
        if not event.startswith(_DATA):
            return event + _END if event.strip() else b""
        content = event[len(_DATA) :]
        if content == _DONE:
            self.done = True
            return b""
        document = orjson.loads(content)
        self._created = document.get("created") or self._created
        if document.get("usage"):
            self.record.count(document["usage"])
        if document.get("choices"):
            self._keep(document["choices"][0], now_s)
        return self._rendered(event, document)

    def _rendered(self, event: bytes, document: Mapping[str, Any]) -> bytes:
        """An event of the engine as the caller gets it; nothing of the usage, unless it was asked for."""
        if not self._knows_id and "id" in document:
            shown = {"id": self._id, "model": self._model}
            self._renamed = [
                (_field(name, document[name]), _field(name, shown[name]))
                for name in shown.keys() & document.keys()
            ]
            self._knows_id = True
        if not document.get("choices") and not self._wants_usage and "error" not in document:
            return b""
        for choice in document.get("choices") or ():
            if "text" in choice and choice.get("logprobs"):
                changed = with_completion_logprobs(choice, self._characters)
                event = _DATA + orjson.dumps({**document, "choices": [changed]})
                self._characters += len(choice["text"] or "")
        for theirs, ours in self._renamed:
            event = event.replace(theirs, ours, 1)
        return event + _END

    def _keep(self, choice: Mapping[str, Any], now_s: float) -> None:
        if choice.get("finish_reason"):
            self.record.finish_reason = choice["finish_reason"]
        self._is_text = "text" in choice
        delta: Mapping[str, Any] = choice.get("delta") or {"content": choice.get("text")}
        if not any(delta.get(name) for name in _FIRST_PIECE):
            return
        if math.isnan(self.record.first_token_s):
            self.record.first_token_s = now_s - self._begin_s
        self._last_s = now_s
        self.pieces += 1
        for name in ("content", "reasoning_content"):
            if delta.get(name):
                self._texts.setdefault(name, []).append(delta[name])
        for call in delta.get("tool_calls") or ():
            self._keep_call(call)

    def _keep_call(self, piece: Mapping[str, Any]) -> None:
        call = self._calls.setdefault(piece.get("index", 0), {"type": "function", "function": {}})
        if "id" in piece:
            call["id"] = piece["id"]
        for name, text in (piece.get("function") or {}).items():
            call["function"][name] = call["function"].get(name, "") + (text or "")


def record_of(document: Mapping[str, Any], elapsed_s: float) -> AnswerRecord:
    """Read the record off an answer that came at once; its timings are the engine's own, where it says them."""
    found = AnswerRecord()
    found.count(document.get("usage") or {})
    choices = document.get("choices") or [{}]
    found.message = choices[0].get("message") or {"role": "assistant", "content": choices[0].get("text")}
    found.finish_reason = choices[0].get("finish_reason") or ""
    timings = document.get("timings") or {}
    made_s = float(timings.get("predicted_ms") or 0) / 1e3
    if found.completion_tokens:
        each_s = made_s / found.completion_tokens
        found.between_tokens_s = each_s
        found.first_token_s = max(0.0, elapsed_s - made_s + each_s)
    return found


def with_completion_logprobs(choice: Mapping[str, Any], offset: int = 0) -> dict[str, Any]:
    """Write the probabilities of a completion's tokens as completions have them, where an engine writes them as chats have.

    offset: characters of the text that came before.
    """
    listed = (choice.get("logprobs") or {}).get("content")
    if listed is None:
        return dict(choice)
    offsets = []
    for token in listed:
        offsets.append(offset)
        offset += len(token["token"])
    logprobs = {
        "tokens": [token["token"] for token in listed],
        "token_logprobs": [token["logprob"] for token in listed],
        "top_logprobs": [
            {top["token"]: top["logprob"] for top in token.get("top_logprobs") or ()} for token in listed
        ],
        "text_offset": offsets,
    }
    return {**choice, "logprobs": logprobs}


def as_choice(answer: AnswerRecord, kind: str) -> dict[str, Any]:
    """Write an answer anew as the one choice of a whole response; without logprobs, which would tell what it was."""
    shared = {"index": 0, "finish_reason": answer.finish_reason, "logprobs": None}
    if kind == COMPLETION:
        return {**shared, "text": answer.message.get("content") or ""}
    return {**shared, "message": answer.message}


def _field(name: str, text: str) -> bytes:
    """A field as engines write it; no text within an event can look like it, since its quotes are escaped there."""
    return orjson.dumps({name: text})[1:-1]


_STARTED: Final = "in_progress"
_RESPONSE_DONE: Final = "completed"


class ResponseStream(EventStream):
    """Events of one response, made of the pieces of a chat. asked: the chat's body; others as of `EventStream`."""

    def __init__(self, answer_id: str, model: str, *, asked: Mapping[str, Any], begin_s: float) -> None:
        super().__init__(answer_id, model, wants_usage=False, begin_s=begin_s)
        self._asked, self._number = asked, 0
        self._anew: list[dict[str, Any]] | None = None
        self._places: list[int | None] = []
        """Of each item in its order, the index of the tool's call; None for the text."""

    def last(self) -> bytes:
        """End all items and the response; after `finish`."""
        events = [] if self._number else list(self._begin())
        for place, index in enumerate(self._places):
            events += self._end_text(place) if index is None else self._end_call(place, index)
        response = self._response(self.record.finish_reason)
        return b"".join([*events, self._event(f"response.{response['status']}", response=response)])

    def rewritten(self, answer: AnswerRecord) -> bytes:
        """Begin the response anew, whose items then come with its end: what was fed must not leave as it came."""
        self._number, self._places, self._anew = 0, [], items_of(answer.message, self._id)
        return b"".join(self._begin())

    def failed(self, error: bytes) -> bytes:
        """End the stream by an error. error: the document of a refusal."""
        document = orjson.loads(error)
        return self._event("error", **document["error"], error=document["error"])

    def _rendered(self, event: bytes, document: Mapping[str, Any]) -> bytes:
        del event
        events = [] if self._number else list(self._begin())
        for choice in document.get("choices") or ():
            delta: Mapping[str, Any] = choice.get("delta") or {}
            if delta.get("content"):
                events += self._say(delta["content"])
            for call in delta.get("tool_calls") or ():
                events += self._call(call)
        return b"".join(events)

    def _begin(self) -> Iterator[bytes]:
        for name in ("created", "in_progress"):
            yield self._event(f"response.{name}", response=self._response(None))

    def _say(self, text: str) -> Iterator[bytes]:
        if None not in self._places:
            place = self._add(None)
            yield self._item("added", place, text_item(self._id, None, status=_STARTED))
            yield self._part("content_part.added", place, part=text_part(""))
        yield self._part("output_text.delta", self._places.index(None), delta=text, logprobs=[])

    def _call(self, piece: Mapping[str, Any]) -> Iterator[bytes]:
        index = piece.get("index", 0)
        if index not in self._places:
            started = {**self._calls[index], "function": {**self._calls[index]["function"], "arguments": ""}}
            yield self._item("added", self._add(index), call_item(self._id, index, started, status=_STARTED))
        arguments = (piece.get("function") or {}).get("arguments")
        if arguments:
            place = self._places.index(index)
            yield self._event(
                "response.function_call_arguments.delta", item_id=f"fc_{self._id}_{index}", output_index=place, delta=arguments
            )  # fmt: skip

    def _end_text(self, place: int) -> Iterator[bytes]:
        text = self.record.message.get("content") or ""
        yield self._part("output_text.done", place, text=text, logprobs=[])
        yield self._part("content_part.done", place, part=text_part(text))
        yield self._item("done", place, text_item(self._id, text, status=_RESPONSE_DONE))

    def _end_call(self, place: int, index: int) -> Iterator[bytes]:
        item = call_item(self._id, index, self._calls[index], status=_RESPONSE_DONE)
        yield self._event(
            "response.function_call_arguments.done", item_id=item["id"], output_index=place, name=item["name"],
            arguments=item["arguments"],
        )  # fmt: skip
        yield self._item("done", place, item)

    def _response(self, finish_reason: str | None) -> dict[str, Any]:
        """The document of the response as it is now."""
        output = [] if self._anew is None or finish_reason is None else self._anew
        if finish_reason is not None and self._anew is None:
            output = [
                text_item(self._id, self.record.message.get("content") or "", status=_RESPONSE_DONE)
                if index is None
                else call_item(self._id, index, self._calls[index], status=_RESPONSE_DONE)
                for index in self._places
            ]
        usage = {
            "prompt_tokens": self.record.prompt_tokens,
            "completion_tokens": self.record.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.record.cached_tokens},
        }
        return response_of(
            self._asked, self._id, self._model, output, usage=usage, finish_reason=finish_reason
        )

    def _add(self, index: int | None) -> int:
        self._places.append(index)
        return len(self._places) - 1

    def _item(self, what: str, place: int, item: Mapping[str, Any]) -> bytes:
        return self._event(f"response.output_item.{what}", output_index=place, item=item)

    def _part(self, what: str, place: int, **fields: Any) -> bytes:
        return self._event(
            f"response.{what}", item_id=f"msg_{self._id}", output_index=place, content_index=0, **fields
        )

    def _event(self, kind: str, **fields: Any) -> bytes:
        content = orjson.dumps({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + content + b"\n\n"


__all__ = [
    "AnswerRecord",
    "EventStream",
    "ResponseStream",
    "as_choice",
    "record_of",
    "with_completion_logprobs",
]
