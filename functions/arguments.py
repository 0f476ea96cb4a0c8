"""Arguments that many functions take, each with what forms, pages, help and OpenAPI say of it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field

from toque.registry import TableSnapshot

Model = Annotated[str, Field(description="Name of a registered model.")]
Version = Annotated[int, Field(description="Number of a version of the model.")]
View = Annotated[str, Field(description="Name of a feature view.")]
Views = Annotated[
    list[str] | None, Field(description="Names of feature views; all of the project unless given.")
]
Label = Annotated[str, Field(description="Column of the outcome that is predicted.")]
TrainingSet = Annotated[
    TableSnapshot, Field(description="Table of training rows at one version, which is recorded with the model.")
]
Dataset = Annotated[TableSnapshot, Field(description="Table of rows at one version.")]
Start = Annotated[datetime, Field(description="Begin of the period, with an offset from UTC; included.")]
End = Annotated[datetime, Field(description="End of the period, with an offset from UTC; not included.")]
Reason = Annotated[str, Field(description="Why this is done, for those who read the history.")]
Experiment = Annotated[
    str | None, Field(description="Experiment under which the run is tracked; the model's name unless given.")
]
Priority = Annotated[
    int, Field(description="What waits for room starts by priority, the highest first; 0 is usual.")
]
LimitSeconds = Annotated[
    float | None, Field(description="Seconds of running after which it is ended; no limit unless given.")
]
Threads = Annotated[int, Field(description="Threads of the processor that each worker computes with.")]
Workers = Annotated[int, Field(description="Number of workers that Ray Train starts.")]
WorkerCpus = Annotated[float, Field(description="Processors that each worker has.")]
WorkerGpus = Annotated[float, Field(description="GPUs that each worker has.")]
Register = Annotated[bool, Field(description="Whether the trained model is registered as the next version.")]
Tags = Annotated[dict[str, str] | None, Field(description="Words by which the run is found, by key.")]
