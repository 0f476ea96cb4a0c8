import pytest
from pydantic import ValidationError

from toque.functions.evaluation.language import Scorer

NAMED = Scorer(kind="json", required=("city",))


@pytest.mark.parametrize(
    ("scorer", "answer", "expected", "score"),
    [
        (Scorer(), " Paris\n", "paris", 1),
        (Scorer(), "Paris.", "Paris", 0),
        (Scorer(kind="contains"), "It is  Paris, I think", "it is paris", 1),
        (Scorer(kind="contains"), "It is Rome", "Paris", 0),
        (Scorer(kind="number"), "2 + 2 is 1,004.0", "1004", 1),
        (Scorer(kind="number"), "between 4 and 5", "4", 0),
        (Scorer(kind="number"), "many", "4", 0),
        (Scorer(kind="number", tolerance=0.5), "about -3.6", "-4", 1),
        (Scorer(kind="regex", pattern=r"^\d{4}-\d\d$"), "2026-11", "", 1),
        (Scorer(kind="regex", pattern=r"^\d{4}-\d\d$"), "in 2026-11", "", 0),
        (NAMED, '{"city": "Paris", "more": 1}', "", 1),
        (NAMED, '["city"]', "", 0),
        (NAMED, '```json\n{"city": "Paris"}\n```', "", 0),
        (Scorer(kind="json"), "[1", "", 0),
        (Scorer(kind="json"), "[" * 100_000, "", 0),
        (Scorer(kind="length", max_length=5), "short", "", 1),
        (Scorer(kind="length", max_length=5), "longer", "", 0),
        (Scorer(kind="length", max_length=5), " ", "", 0),
        (Scorer(kind="similarity"), "abcd", "abxd", 0.75),
        (Scorer(kind="similarity"), "", "", 1),
    ],
)
def test_an_answer_is_scored(scorer: Scorer, answer: str, expected: str, score: float):
    assert scorer.score(answer, expected) == score


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "regex"}, "needs pattern"),
        ({"kind": "regex", "pattern": "("}, "unterminated"),
        ({"kind": "exact", "pattern": "a"}, "belongs to 'regex'"),
        ({"kind": "exact", "required": ["a"]}, "belongs to 'json'"),
        ({"kind": "length"}, "needs max_length"),
        ({"kind": "taste"}, "kind"),
    ],
)
def test_a_scorer_is_checked_when_it_is_declared(fields: dict[str, object], message: str):
    with pytest.raises(ValidationError, match=message):
        Scorer.model_validate(fields)
