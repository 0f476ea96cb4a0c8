"""Signatures of functions: validation of arguments, JSON forms of values, JSON Schemas."""

from __future__ import annotations

import collections.abc
import inspect
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from pydantic import (
    ConfigDict,
    PydanticSchemaGenerationError,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
)
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import JsonSchemaMode
from pydantic_core import PydanticSerializationError, to_json

from toque.functions.runtime.errors import DeclarationError, InvalidArguments, InvalidResult

RESERVED = frozenset({"key"})
_STREAMS = (
    collections.abc.Generator,
    collections.abc.Iterator,
    collections.abc.AsyncGenerator,
    collections.abc.AsyncIterator,
)


@dataclass(frozen=True)
class Signature:
    """Types of a function's parameters and of its result.

    name: for messages; signature: parameters in order, each of which can be given by name; hints: their
    resolved types, and the result's under "return".
    """

    name: str
    signature: inspect.Signature
    hints: Mapping[str, Any]

    @classmethod
    def of(cls, target: Callable[..., Any], *, names: Mapping[str, Any]) -> Signature:
        """Read the signature of `target`; `names` resolves annotations beyond its module.

        Raises: DeclarationError if a parameter has no name or no type, or the return type is missing.
        """
        name = target.__name__
        signature = inspect.signature(target)
        hints = _hints(target, names)
        for parameter in signature.parameters.values():
            _check(name, parameter, hints)
        if "return" not in hints:
            raise DeclarationError(f"{name}: declare a return type, as in `-> int` or `-> None`")
        built = cls(name, signature, hints)
        if not (
            built.adapters.keys() == signature.parameters.keys() and built.result
        ):  # built now, so that errors are raised at import
            raise DeclarationError(f"{name}: its parameters {signature} cannot be typed")
        return built

    @cached_property
    def adapters(self) -> dict[str, TypeAdapter[Any]]:
        """Map each parameter to its validator."""
        return {each: _adapter(self.name, each, self.hints[each]) for each in self.signature.parameters}

    @cached_property
    def result(self) -> TypeAdapter[Any]:
        """Return the validator of the result; the result of a stream is the list of its items."""
        return _adapter(self.name, "return", _result_type(self.hints["return"]))

    def bind_item(self, item: Any) -> dict[str, Any]:
        """Validate the arguments that one item of a `map` stands for. Raises: InvalidArguments."""
        if len(self.signature.parameters) > 1 and isinstance(item, Mapping):
            return self.bind((), item)
        if len(self.signature.parameters) > 1 and isinstance(item, tuple):
            return self.bind(item, {})
        return self.bind((item,), {})

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Validate arguments and return them by name, defaults left out. Raises: InvalidArguments."""
        try:
            bound = self.signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise InvalidArguments(f"{self.name}: {error}") from error
        return self._validate(bound, lambda adapter, value: adapter.validate_python(value))

    def with_defaults(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Add the defaults of omitted arguments, so that they mean the same under later code."""
        defaults = {
            each: p.default for each, p in self.signature.parameters.items() if p.default is not p.empty
        }
        return defaults | dict(arguments)

    def load_strictly(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Validate a caller's JSON object of arguments exactly by its JSON Schema, without conversions.

        Neither `false` nor "1" passes as an integer, nor a number that is not finite, which JSON does not carry; integers have any size.
        Raises: InvalidArguments naming each bad field.
        """
        loaded = self._loaded(arguments, _validate_strictly)
        if beyond := [problem for name, value in arguments.items() for problem in _beyond(name, value)]:
            raise self._invalid(beyond)
        return loaded

    def load(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Deserialise arguments from their JSON form. Raises: InvalidArguments naming each bad field."""
        return self._loaded(arguments, _validate_json_value)

    def _loaded(
        self, arguments: Mapping[str, Any], validate: Callable[[TypeAdapter[Any], Any], Any]
    ) -> dict[str, Any]:
        problems = [
            _problem(each, "unknown", "unknown parameter") for each in arguments if each not in self.adapters
        ]
        for each, parameter in self.signature.parameters.items():
            if parameter.default is parameter.empty and each not in arguments:
                problems.append(_problem(each, "missing", "required, but missing"))
        if problems:
            raise self._invalid(problems)
        return self._validate(arguments, validate)

    def dump(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Serialise validated arguments to JSON. Raises: InvalidArguments if one has no JSON form."""
        try:
            return {
                each: self.adapters[each].dump_python(value, mode="json") for each, value in arguments.items()
            }
        except (PydanticSerializationError, ValueError) as error:
            raise InvalidArguments(f"{self.name}: an argument has no JSON form: {error}") from error

    def dump_result(self, value: Any) -> Any:
        """Serialise a result to JSON. Raises: InvalidResult if it does not fit the return type."""
        try:
            return self.result.dump_python(self.result.validate_python(value), mode="json")
        except (ValidationError, PydanticSerializationError, ValueError) as error:
            kind = type(value).__name__
            raise InvalidResult(
                f"{self.name} returned {kind}, which its return type cannot carry: {error}"
            ) from error

    def load_result(self, value: Any) -> Any:
        """Deserialise a result from its JSON form."""
        return _validate_json_value(self.result, value)

    @cached_property
    def input_schema(self) -> dict[str, Any]:
        """Build the JSON Schema of the arguments. Raises: DeclarationError if a type has no schema."""
        mode: JsonSchemaMode = "validation"
        inputs = [(each, mode, adapter) for each, adapter in self.adapters.items()]
        try:
            schemas, shared = TypeAdapter.json_schemas(inputs)
        except PydanticInvalidForJsonSchema as error:
            raise DeclarationError(f"{self.name}: a parameter has no JSON Schema: {error}") from error
        properties = {each: dict(schemas[each, mode]) for each, _, _ in inputs}
        required = [each for each, p in self.signature.parameters.items() if p.default is p.empty]
        for each, parameter in self.signature.parameters.items():
            if parameter.default is not parameter.empty:
                properties[each]["default"] = self.dump({each: parameter.default})[each]
        schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
        return _with_tags(schema | ({"required": required} if required else {}) | shared)

    @cached_property
    def output_schema(self) -> dict[str, Any]:
        """Build the JSON Schema of the result. Raises: DeclarationError if its type has no schema."""
        try:
            return self.result.json_schema(mode="serialization")
        except PydanticInvalidForJsonSchema as error:
            raise DeclarationError(f"{self.name}: the return type has no JSON Schema: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "signature": self.signature, "hints": self.hints}

    def _validate(
        self, arguments: Mapping[str, Any], validate: Callable[[TypeAdapter[Any], Any], Any]
    ) -> dict[str, Any]:
        values, problems = {}, []
        for each, value in arguments.items():
            try:
                values[each] = validated = validate(self.adapters[each], value)
            except ValidationError as error:
                problems += [_problem_of(each, detail) for detail in error.errors(include_url=False)]
                continue
            except PydanticSerializationError as error:
                problems.append(_problem(each, "not_json", f"no JSON value: {error}"))
                continue
            if isinstance(validated, datetime) and validated.tzinfo is None:
                problems.append(_problem(each, "naive", "a naive time; give its offset, as in Z", str(value)))
        if problems:
            raise self._invalid(problems)
        return values

    def _invalid(self, problems: list[dict[str, Any]]) -> InvalidArguments:
        text = "; ".join(f"{each['field']}: {each['message']}" for each in problems)
        return InvalidArguments(f"{self.name}: {text}", problems)


def _validate_json_value(adapter: TypeAdapter[Any], value: Any) -> Any:
    # JSON has fewer types than Python: times, bytes and tuples come as strings and lists, which lax mode accepts.
    return adapter.validate_python(value)


def _validate_strictly(adapter: TypeAdapter[Any], value: Any) -> Any:
    try:
        return adapter.validate_json(_text(value), strict=True)
    except ValidationError as error:
        if not any(_is_whole(detail["input"]) for detail in error.errors(include_url=False)):
            raise
    # 1.0 is an integer to JSON Schema
    return adapter.validate_json(_text(_with_integers(value)), strict=True)


def _text(value: Any) -> bytes:
    return to_json(value, inf_nan_mode="constants")


def _beyond(path: str, value: Any) -> Iterator[dict[str, Any]]:
    """Find the numbers in a JSON value that are not finite."""
    if isinstance(value, dict | list):
        for name, member in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _beyond(f"{path}.{name}", member)
    elif isinstance(value, float) and not math.isfinite(value):
        yield _problem(path, "finite_number", f"must be a finite number, got {value}", str(value))


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()


def _with_integers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_integers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_integers(each) for each in value]
    return int(value) if _is_whole(value) else value


def _hints(target: Callable[..., Any], names: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target, localns=dict(names), include_extras=True)
    except NameError as error:
        raise DeclarationError(f"{target.__name__}: {error}; define the type before the function") from error


def _check(name: str, parameter: inspect.Parameter, hints: Mapping[str, Any]) -> None:
    if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
        raise DeclarationError(f"{name}: parameter {parameter} has no name a JSON object could give; name it")
    if parameter.name in RESERVED:
        raise DeclarationError(
            f"{name}: a parameter cannot be called {parameter.name!r}: `submit` takes it; rename it"
        )
    if parameter.name not in hints:
        raise DeclarationError(f"{name}: parameter {parameter.name!r} has no type; annotate it")


def _adapter(name: str, parameter: str, kind: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(kind)
    except PydanticSchemaGenerationError:
        return TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError as error:
        raise DeclarationError(f"{name}: {parameter}: {error.message}") from error


def _result_type(kind: Any) -> Any:
    if typing.get_origin(kind) in _STREAMS:
        return list[typing.get_args(kind)[0]]  # type: ignore[misc]  # the item type is known at run time only
    return kind


def _problem_of(parameter: str, detail: Any) -> dict[str, Any]:
    path = ".".join(str(part) for part in (parameter, *detail["loc"]))
    shown = repr(detail["input"])
    return _problem(path, detail["type"], f"{detail['msg']}, got {shown[:80]}", shown[:200])


def _problem(field: str, kind: str, message: str, value: str | None = None) -> dict[str, Any]:
    return {"field": field, "kind": kind, "message": message, "value": value}


def _with_tags(schema: dict[str, Any]) -> dict[str, Any]:
    """Require the tag of a tagged union of its members: without the tag pydantic accepts no member, though the
    field that holds it has a default.
    """
    definitions = schema.get("$defs", {})
    for node in _nodes(schema):
        tagged = node.get("discriminator")
        tag = tagged.get("propertyName") if isinstance(tagged, dict) else None
        for each in node.get("oneOf", ()) if isinstance(tag, str) else ():
            member = definitions.get(each.get("$ref", "").rpartition("/")[2])
            if member is not None:
                member["required"] = sorted({*member.get("required", ()), tag})
    return schema


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _nodes(each)
