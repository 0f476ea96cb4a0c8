"""Stream of a chat as the events of OpenAI's Responses API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

from toque.ray_apps.generative.openai.answers import AnswerRecord, EventStream
from toque.ray_apps.generative.openai.responses import call_item, items_of, response_of, text_item, text_part

__all__ = ["ResponseStream"]

_STARTED: Final = "in_progress"
_DONE: Final = "completed"


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
        yield self._item("done", place, text_item(self._id, text, status=_DONE))

    def _end_call(self, place: int, index: int) -> Iterator[bytes]:
        item = call_item(self._id, index, self._calls[index], status=_DONE)
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
                text_item(self._id, self.record.message.get("content") or "", status=_DONE)
                if index is None
                else call_item(self._id, index, self._calls[index], status=_DONE)
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
