"""Gate of language models: evaluation sets as tables, scorers, and the paired comparison of two versions' answers."""

from functions.evaluation.language.answer_gate import AnswerGate, judge_answers
from functions.evaluation.language.scorers import Scorer

__all__ = ["AnswerGate", "Scorer", "judge_answers"]
