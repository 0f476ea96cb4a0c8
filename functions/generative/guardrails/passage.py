"""The guardrails of a prompt, and what they find in a request and its answer and make of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, Field, model_validator

from toque.functions.generative.guardrails.rule import Guardrail, plain
from toque.functions.generative.template_arguments import TEMPLATE_ARGUMENTS, with_texts

GuardrailStage = Literal["before", "after"]
_ONLY: Final = {"json_schema": "after", "injection": "before"}
_VARIABLE: Final = "variable"
"""Role of the text of a variable or of a template's argument here; their lengths have bounds of their own."""
_CALLERS: Final = frozenset({"user", "tool", "function", _VARIABLE})
"""Roles whose texts come from outside: an application's own system message may give orders."""
_USER: Final = frozenset({"user"})
_EVERYBODY: Final = _CALLERS | {"system", "developer", "assistant"}
Change = Callable[[str, str], str]
"""Takes a role and a text; gives the text that goes on in its place."""


class Guardrails(BaseModel, frozen=True, extra="forbid"):
    """Rules on what a caller sends, and on what the model answers, in the order in which they are applied."""

    before: tuple[Guardrail, ...] = Field(
        default=(),
        max_length=32,
        description="Rules on the texts of the caller's messages, variables and arguments of the chat template; the prompt's own are not looked at.",
    )
    after: tuple[Guardrail, ...] = Field(
        default=(),
        max_length=32,
        description=(
            "Rules on the answer's text, its reasoning and the arguments of its calls of tools; "
            "a stream is held until they have passed it."
        ),
    )

    @model_validator(mode="after")
    def _placed(self) -> Self:
        stages: tuple[tuple[GuardrailStage, tuple[Guardrail, ...]], ...] = (
            ("before", self.before),
            ("after", self.after),
        )
        for stage, rules in stages:
            names = [each.label for each in rules]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"guardrails.{stage}: {twice} are named twice; give each a name")
            for each in rules:
                if _ONLY.get(each.kind, stage) != stage:
                    raise ValueError(
                        f"guardrails.{stage}: kind={each.kind!r} belongs to {_ONLY[each.kind]!r} alone"
                    )
        return self


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule found in a request or an answer. count: of it; action: what followed."""

    stage: GuardrailStage
    rule: str
    kind: str
    action: str
    count: int


@dataclass(frozen=True, slots=True)
class RequestCheck:
    """A request after the rules: body as it goes on, and is logged; personal data that a rule refuses is masked in it too."""

    body: dict[str, Any]
    findings: tuple[Finding, ...]

    @property
    def refused(self) -> Finding | None:
        """The finding that refuses the request."""
        return _refusing(self.findings)


@dataclass(frozen=True, slots=True)
class AnswerCheck:
    """An answer after the rules: message as it goes on; without content, and with a `refusal`, if one refuses it."""

    message: dict[str, Any]
    findings: tuple[Finding, ...]

    @property
    def refused(self) -> Finding | None:
        """The finding that refuses the answer."""
        return _refusing(self.findings)


def check_request(guardrails: Guardrails, body: Mapping[str, Any]) -> RequestCheck:
    """Apply the rules before the model is asked. body: a request of chat or of completions, with its `variables` if it has any."""
    found, current = [], dict(body)
    for rule in guardrails.before:
        count, current = _applied(rule, current)
        if count:
            found.append(Finding("before", rule.label, rule.kind, rule.action, count))
    return RequestCheck(current, tuple(found))


def check_answer(guardrails: Guardrails, message: Mapping[str, Any]) -> AnswerCheck:
    """Apply the rules to what the model answered. message: an assistant's, with its calls of tools."""
    found, current = [], dict(message)
    for rule in guardrails.after:
        count, current = _applied(rule, current, _answer_texts)
        if count:
            found.append(Finding("after", rule.label, rule.kind, rule.action, count))
    refused = _refusing(tuple(found))
    if refused is not None:
        said = f"This answer was withheld by the guardrail {refused.rule!r}."
        current = {"role": message.get("role", "assistant"), "content": None, "refusal": said}
    return AnswerCheck(current, tuple(found))


def _refusing(findings: tuple[Finding, ...]) -> Finding | None:
    return next((each for each in findings if each.action == "refuse"), None)


def _applied(
    rule: Guardrail,
    body: dict[str, Any],
    texts: Callable[[dict[str, Any], Change], dict[str, Any]] | None = None,
) -> tuple[int, dict[str, Any]]:
    """Apply a rule to all texts that it is about; returns what it found, and the body with what it masks."""
    masks = rule.action == "redact" or (rule.action == "refuse" and rule.kind == "personal_data")
    seen: list[str] = []
    count = 0

    def change(role: str, text: str) -> str:
        nonlocal count
        if texts is None and role not in _roles(rule):
            return text
        comparable = plain(text)
        if rule.kind == "length":  # of all texts together
            seen.append(comparable)
            return text
        found = rule.find(comparable)
        count += found
        return rule.masked(comparable) if found and masks else text

    changed = (texts or _request_texts)(body, change)
    if rule.kind == "json_schema":  # a call of tools has a schema of its own
        content = body.get("content")
        count = 0 if body.get("tool_calls") and not content else rule.find(content or "")
    return (rule.find("".join(seen)) if seen else count), changed


def _roles(rule: Guardrail) -> frozenset[str]:
    """Whose texts a rule is about; of personal data, everybody's."""
    if rule.kind == "allow":
        return _USER
    return {"injection": _CALLERS, "length": _EVERYBODY - {_VARIABLE}}.get(rule.kind, _EVERYBODY)


def _request_texts(body: dict[str, Any], change: Change) -> dict[str, Any]:
    changed = dict(body)
    if isinstance(messages := body.get("messages"), list):
        changed["messages"] = [_message(each, change) for each in messages]
    if isinstance(prompt := body.get("prompt"), str):
        changed["prompt"] = change("user", prompt)
    if isinstance(variables := body.get("variables"), dict):
        changed["variables"] = {
            name: change(_VARIABLE, value) if isinstance(value, str) else value
            for name, value in variables.items()
        }
    if isinstance(arguments := body.get(TEMPLATE_ARGUMENTS), dict):
        changed[TEMPLATE_ARGUMENTS] = {
            name: with_texts(value, lambda text: change(_VARIABLE, text)) for name, value in arguments.items()
        }
    return changed


def _message(message: Any, change: Change) -> Any:
    """Change the texts of a message: its parts joined, since a model reads them as one text, and the arguments of its calls."""
    if not isinstance(message, dict):
        return message
    role, content = message.get("role"), message.get("content")
    role = (
        role if isinstance(role, str) and role in _EVERYBODY else "user"
    )  # templates render any role, and callers make them up
    changed = dict(message)
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(text for text in texts if isinstance(text, str))
    if isinstance(content, str):
        changed["content"] = change(role, content)
    for name in ("reasoning_content", "name"):
        if isinstance(text := message.get(name), str):
            changed[name] = change(role, text)
    if isinstance(calls := message.get("tool_calls"), list):
        changed["tool_calls"] = [
            _call(call, change, role="tool") if isinstance(call, dict) else call for call in calls
        ]
    return changed


def _answer_texts(message: dict[str, Any], change: Change) -> dict[str, Any]:
    changed = dict(message)
    for name in ("content", "reasoning_content"):
        if isinstance(text := message.get(name), str):
            changed[name] = change("assistant", text)
    if calls := message.get("tool_calls"):
        changed["tool_calls"] = [_call(call, change) for call in calls]
    return changed


def _call(call: dict[str, Any], change: Change, role: str = "assistant") -> dict[str, Any]:
    """Change the arguments of a call. role: whose they count as; those that a request brings come from outside."""
    named = call.get("function")
    if not isinstance(named, dict):
        return call
    return {
        **call,
        "function": {**named, "arguments": change(role, _unescaped(named.get("arguments") or ""))},
    }


def _unescaped(arguments: str) -> str:
    """Write the letters of arguments that are escaped in JSON as themselves: rules look for letters."""
    if "\\u" not in arguments:
        return arguments
    try:
        return json.dumps(json.loads(arguments), ensure_ascii=False)
    except ValueError:
        return arguments


__all__ = [
    "AnswerCheck",
    "Finding",
    "GuardrailStage",
    "Guardrails",
    "RequestCheck",
    "check_answer",
    "check_request",
]
