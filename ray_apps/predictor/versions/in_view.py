"""Which of a version's tensors the log's columns for monitors hold bit for bit: float32 and texts, side by side."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from toque.registry.models import Signature, TensorSpec

__all__ = ["NOTHING_IN_VIEW", "InView"]

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class InView:
    """Shapes of a row's tensors by name, if the columns hold them all as they are; None if they do not."""

    inputs: Shapes | None
    outputs: Shapes | None

    @classmethod
    def of(cls, signature: Signature) -> InView:
        """Derive it from a signature: float32, for inputs also texts, and rows of a known shape."""
        return cls(_shapes(signature.inputs, {"FP32", "BYTES"}), _shapes(signature.outputs, {"FP32"}))


NOTHING_IN_VIEW = InView(None, None)


def _shapes(specs: Sequence[TensorSpec], datatypes: Collection[str]) -> Shapes | None:
    for spec in specs:
        if spec.datatype not in datatypes or spec.shape[:1] != [-1] or -1 in spec.shape[1:]:
            return None
    return {spec.name: tuple(spec.shape[1:]) for spec in specs}
