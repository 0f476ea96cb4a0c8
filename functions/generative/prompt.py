"""A prompt as a value: template with typed variables, example turns, tools and sampling parameters.

A template is text with `{{ name }}` in it and no logic: values are put in once, and what they hold is never read as a template.
Spans of tools follow OpenTelemetry's conventions for generative models.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, Field, model_validator
from pydantic_core import to_json

from toque.functions.generative.guardrails import Guardrails
from toque.functions.generative.template_arguments import TEMPLATE_ARGUMENTS, check_template_arguments
from toque.functions.runtime.telemetry import span

_PLACE: Final = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")
_PARAMETERS: Final = frozenset(
    {
        "temperature", "top_p", "top_k", "min_p", "max_tokens", "stop", "seed", "presence_penalty",
        "frequency_penalty", "repeat_penalty", "logit_bias", "logprobs", "top_logprobs", TEMPLATE_ARGUMENTS,
    }
)  # fmt: skip
Value = str | int | float | bool
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}


class GenerativeError(ValueError):
    """A prompt, a version's files or a request's variables are not what they must be; the message names the field."""


class Variable(BaseModel, frozen=True, extra="forbid"):
    """A place in a prompt's templates that each request fills."""

    type: Literal["string", "integer", "number", "boolean"] = Field(
        default="string", description="Type of the values."
    )
    default: Value | None = Field(
        default=None,
        description="What a request that gives no value has; it must give one unless this is given.",
    )
    choices: tuple[Value, ...] = Field(default=(), description="The only values there are; any unless given.")
    max_length: int = Field(
        le=100_000_000, default=4_096, ge=1, description="Characters that a string has at most."
    )

    def text(self, name: str, value: Any) -> str:
        """Check a value and write it as text. Raises: GenerativeError."""
        fits = isinstance(value, _TYPES[self.type]) and (self.type == "boolean") == isinstance(value, bool)
        if not fits:
            raise GenerativeError(f"variables.{name}: expected {self.type}, got {value!r:.80}")
        if self.choices and value not in self.choices:
            raise GenerativeError(f"variables.{name}: {value!r:.80} is not one of {list(self.choices)}")
        if isinstance(value, str) and len(value) > self.max_length:
            raise GenerativeError(
                f"variables.{name}: {len(value)} characters, at most {self.max_length} are taken"
            )
        return value if isinstance(value, str) else json.dumps(value)


class PromptMessage(BaseModel, frozen=True, extra="forbid"):
    """A message of the prompt."""

    role: Literal["system", "user", "assistant"] = Field(description="Who says it.")
    content: str = Field(description="Template of the text, in which `{{ name }}` stands for a variable.")


class Example(BaseModel, frozen=True, extra="forbid"):
    """A turn that shows the model how to answer, before the request's own messages; both are taken as they are."""

    user: str = Field(description="What the user says.")
    assistant: str = Field(description="What the model ought to answer to it.")


class Prompt(BaseModel, frozen=True, extra="forbid"):
    """Messages that stand before a request's own, and what is asked of the engine with them.

    A request that says its own tools, format or parameter has its way.
    """

    messages: tuple[PromptMessage, ...] = Field(
        default=(), description="Messages that stand before a request's own, in their order."
    )
    variables: dict[str, Variable] = Field(
        default_factory=dict, description="Variables of the templates in the messages, by name; all of them."
    )
    examples: tuple[Example, ...] = Field(
        default=(), description="Turns that show the model how to answer, after the messages."
    )
    tools: tuple[dict[str, Any], ...] = Field(
        default=(), description="Tools that the model may call, as the OpenAI API has them."
    )
    response_format: dict[str, Any] | None = Field(
        default=None, description="Format of the answer, as the OpenAI API has it; free text unless given."
    )
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description=(
            "Parameters of sampling, such as `temperature`, as the OpenAI API has them, and `chat_template_kwargs`, arguments of the "
            "chat template."
        ),
    )
    guardrails: Guardrails = Field(
        default=Guardrails(), description="Rules on requests and answers, which no request can leave out."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        named = {name for message in self.messages for name in _PLACE.findall(message.content)}
        if unknown := sorted(named - self.variables.keys()):
            raise ValueError(
                f"messages: {unknown} are not in variables {sorted(self.variables)}; declare them"
            )
        if unused := sorted(self.variables.keys() - named):
            raise ValueError(f"variables: {unused} stand in no message; write {{{{ {unused[0]} }}}} in one")
        for name, variable in self.variables.items():
            if variable.default is not None:
                variable.text(name, variable.default)
        if strange := sorted(self.parameters.keys() - _PARAMETERS):
            raise ValueError(f"parameters: {strange} are not of {sorted(_PARAMETERS)}")
        if TEMPLATE_ARGUMENTS in self.parameters:
            check_template_arguments(self.parameters[TEMPLATE_ARGUMENTS])
        return self

    def request(self, body: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Make the request for the engine from a caller's chat request.

        given: values of the variables. Raises: GenerativeError, naming the variable.
        """
        values = self._values(given)
        before = [
            {"role": message.role, "content": _PLACE.sub(lambda found: values[found[1]], message.content)}
            for message in self.messages
        ]
        for example in self.examples:
            before += [
                {"role": "user", "content": example.user},
                {"role": "assistant", "content": example.assistant},
            ]
        ours: dict[str, Any] = dict(self.parameters)
        if self.tools:
            ours["tools"] = list(self.tools)
        if self.response_format is not None:
            ours["response_format"] = self.response_format
        if "max_completion_tokens" in body:
            ours.pop("max_tokens", None)
        return {**ours, **body, "messages": [*_placed(before, body.get("messages", ()))]}

    def _values(self, given: Mapping[str, Any]) -> dict[str, str]:
        if unknown := sorted(set(given) - self.variables.keys()):
            raise GenerativeError(
                f"variables.{unknown[0]:.80}: the prompt has none of that name; it has {sorted(self.variables)}"
            )
        found = {}
        for name, variable in self.variables.items():
            value = given.get(name, variable.default)
            if value is None:
                raise GenerativeError(f"variables.{name}: missing; the prompt needs a {variable.type}")
            found[name] = variable.text(name, value)
        return found


def difference(one: Prompt, other: Prompt, *, names: Sequence[str] = ("before", "after")) -> str:
    """Compare two prompts as a unified diff of their text, field by field; empty if they are equal."""
    before, after = (_lines(each) for each in (one, other))
    return "\n".join(difflib.unified_diff(before, after, names[0], names[1], n=1, lineterm=""))


def _lines(prompt: Prompt) -> list[str]:
    """Lay a prompt out so that each line of a text is a line, and the rest is JSON."""
    lines = []
    for message in prompt.messages:
        lines += [f"[{message.role}]", *message.content.splitlines()]
    for example in prompt.examples:
        lines += ["[example]", f"user: {example.user}", f"assistant: {example.assistant}"]
    rest = prompt.model_dump(mode="json", exclude={"messages", "examples"}, exclude_defaults=True)
    for field, value in sorted(rest.items()):
        lines += [f"[{field}]", *json.dumps(value, indent=1, sort_keys=True).splitlines()]
    return lines


def _placed(before: list[dict[str, Any]], own: Sequence[Any]) -> list[Any]:
    """Put the prompt's messages before the request's; two system messages become one, since templates take one."""
    first = own[0] if own else None
    if (
        before
        and before[0]["role"] == "system"
        and isinstance(first, dict)
        and first.get("role") == "system"
        and isinstance(first.get("content"), str)
    ):
        joined = {"role": "system", "content": f"{before[0]['content']}\n\n{first['content']}"}
        return [joined, *before[1:], *own[1:]]
    return [*before, *own]


def call_tool(call: Mapping[str, Any], tools: Mapping[str, Callable[..., Any]]) -> dict[str, str]:
    """Run a tool that a model called, and make the message that tells the model what it gave.

    call: one of an answer's `tool_calls`, as the API has it. tools: what may be called, by name; it gets the arguments by keyword, and its
    result is sent as it is if it is a text, else as JSON. In a run of a function that is traced the call is a span of it, without
    arguments and result.
    Raises: GenerativeError for a tool that there is not, or arguments that are no object; and what the tool raises.
    """
    name, call_id = call["function"]["name"], str(call["id"])
    if name not in tools:
        raise GenerativeError(f"tool {name!r:.80} is not one of {', '.join(sorted(tools))}")
    try:
        arguments = json.loads(call["function"]["arguments"] or "{}")
    except json.JSONDecodeError as error:
        raise GenerativeError(f"arguments of tool {name!r} are not JSON: {error}; ask again") from error
    if not isinstance(arguments, dict):
        raise GenerativeError(
            f"arguments of tool {name!r}: expected an object, got {arguments!r:.80}; ask again"
        )
    attributes = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": name,
        "gen_ai.tool.type": "function",
        "gen_ai.tool.call.id": call_id,
    }
    with span(f"execute_tool {name}", **attributes):
        result = tools[name](**arguments)
    content = result if isinstance(result, str) else to_json(result).decode()
    return {"role": "tool", "tool_call_id": call_id, "content": content}


__all__ = ["Example", "GenerativeError", "Prompt", "PromptMessage", "Variable", "call_tool", "difference"]
