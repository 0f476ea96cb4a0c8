"""Guardrails of a prompt: rules on what is asked and answered, declared with its version. Pure: texts in, findings out."""

from toque.functions.generative.guardrails.passage import (
    AnswerCheck,
    Finding,
    Guardrails,
    GuardrailStage,
    RequestCheck,
    check_answer,
    check_request,
)
from toque.functions.generative.guardrails.rule import Guardrail

__all__ = [
    "AnswerCheck",
    "Finding",
    "Guardrail",
    "GuardrailStage",
    "Guardrails",
    "RequestCheck",
    "check_answer",
    "check_request",
]
