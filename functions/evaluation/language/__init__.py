"""Gate of language models: evaluation sets as tables, scorers, and the paired comparison of two versions' answers."""

from toque.functions.evaluation.language.answer_gate import AnswerGate, judge_answers
from toque.functions.evaluation.language.judge import Judge, JudgeAgreement
from toque.functions.evaluation.language.scorers import Scorer

__all__ = ["AnswerGate", "Judge", "JudgeAgreement", "Scorer", "judge_answers"]
