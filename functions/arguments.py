"""Arguments that many functions take, each with what forms, pages, help and OpenAPI say of it."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated

from pydantic import (
    AwareDatetime,
    BeforeValidator,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from toque.functions.runtime.environments import Environment
from toque.registry import InvalidInput, TableSnapshot
from toque.registry.times import as_utc

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"  # the registry's rule for names
_NUMBER = re.compile(
    r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", re.IGNORECASE
)  # pydantic takes it for seconds since 1970
_AWARE = TypeAdapter[datetime](AwareDatetime)
_TIME_FORM = "write ISO 8601 with its offset, as in 2030-01-31T18:00:00+00:00"


def parse_time(value: object) -> datetime:
    """Parse a time to UTC, also a text of JSON where nothing else is converted; where the value is not one, say how one is written,
    and not which type of ours refused it.
    """
    if isinstance(value, int | float) or (isinstance(value, str) and _NUMBER.fullmatch(value.strip())):
        raise _not_a_time(value, "is not a time")
    try:
        return as_utc(_AWARE.validate_python(value))
    except InvalidInput as error:
        raise _not_a_time(value, "is before the year 1 or after 9999 in UTC") from error
    except ValidationError as error:
        naive = any(each["type"] == "timezone_aware" for each in error.errors())
        raise _not_a_time(value, "has no timezone" if naive else "is not a time") from error


def _not_a_time(value: object, why: str) -> PydanticCustomError:
    return PydanticCustomError(
        "time", "{value} {why}; " + _TIME_FORM, {"value": repr(value)[:100], "why": why}
    )


Name = Annotated[str, StringConstraints(pattern=NAME)]
Number = Annotated[int, Field(ge=1, le=2**31)]
Time = Annotated[AwareDatetime, BeforeValidator(parse_time)]
Model = Annotated[Name, Field(description="Name of a registered model.")]
Version = Annotated[Number, Field(description="Number of a version of the model.")]
Reason = Annotated[
    str, Field(max_length=2000, description="Why this is done, for those who read the history.")
]
View = Annotated[str, Field(description="Name of a feature view.")]
Views = Annotated[
    list[str] | None, Field(description="Names of feature views; all of the project unless given.")
]
PredictionId = Annotated[str, Field(description="Id of a logged prediction, as its answer had it.")]
PredictedAt = Annotated[
    datetime,
    Field(description="Time of that prediction, with an offset from UTC, as `list_predictions` tells it."),
]
Label = Annotated[str, Field(description="Column of the outcome that is predicted.")]
TrainingSet = Annotated[
    TableSnapshot,
    Field(description="Table of training rows at one version, which is recorded with the model."),
]
Dataset = Annotated[TableSnapshot, Field(description="Table of rows at one version.")]
Start = Annotated[datetime, Field(description="Begin of the period, with an offset from UTC; included.")]
End = Annotated[datetime, Field(description="End of the period, with an offset from UTC; not included.")]
Experiment = Annotated[
    str | None, Field(description="Experiment under which the run is tracked; the model's name unless given.")
]
Priority = Annotated[
    int,
    Field(
        ge=-1_000_000,
        le=1_000_000,
        description="Priority of a submitted call in the queue of experiments, the highest first; 0 is usual.",
    ),
]
LimitSeconds = Annotated[
    float | None,
    Field(
        gt=0,
        le=31_622_400,
        description=(
            "Seconds after which a submitted call is ended, with which it may fill a gap in the queue; no "
            "limit unless given."
        ),
    ),
]
Threads = Annotated[
    int, Field(ge=1, le=1_024, description="Threads of the processor that each worker computes with.")
]
NumWorkers = Annotated[
    int,
    Field(
        ge=1,
        le=10_000,
        description="Number of workers; 1 trains in this process, more train on the Ray cluster.",
    ),
]
WorkerCpus = Annotated[float, Field(ge=0, le=10_000, description="Processors that each worker has.")]
WorkerGpus = Annotated[
    float,
    Field(ge=0, le=1_024, description="GPUs that each worker has; without any it computes on processors."),
]
Card = Annotated[
    str | None,
    Field(
        description="Type of the GPUs as Ray names it; any whole ones unless given.",
        examples=["H100", "H100-1g.10gb"],
    ),
]
BroughtEnvironment = Annotated[
    Environment | None,
    Field(
        description=(
            "Packages and variables that the processes of a submitted call have, if the profile allows them."
        )
    ),
]
Numeric = Annotated[list[str], Field(description="Feature columns of numbers.")]
Categorical = Annotated[list[str], Field(description="Feature columns of texts, integers or booleans.")]
Register = Annotated[bool, Field(description="Whether the trained model is registered as the next version.")]
Tags = Annotated[
    dict[str, str] | None, Field(description="Tags of the run and of the version that it registers, by key.")
]
