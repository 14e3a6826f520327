from __future__ import annotations

from csrtrain.evaluation.comparison import Result
from csrtrain.evaluation.verdicts import verdicts


def result(method: str, active: int, size: int, score: float) -> Result:
    return Result(method, active, size, {"1-nn": score})


RESULTS = [
    result("dense", 32, 64, 0.9),
    result("PCA", 4, 8, 0.5),
    result("PCA", 8, 16, 0.8),
    result("CSR", 2, 8, 0.7),
    result("CSR, packed", 5, 12, 0.8),
    result("int8", 32, 32, 0.85),
]


def test_the_best_of_each_budget_is_named():
    found = verdicts(RESULTS)
    assert [verdict.budget for verdict in found] == [8, 16, 32]
    assert [verdict.best.method for verdict in found] == ["CSR", "CSR, packed", "int8"]
    assert str(found[0]) == (
        "For 8 bytes take CSR with 2 active, 70.0%; the best baseline: PCA with 4 active, 50.0%."
    )
    assert str(found[2]) == (
        "For 32 bytes take int8 with 32 active, 85.0%; "
        "the best codes: CSR, packed with 5 active, 80.0%."
    )


def test_without_codes_or_without_anything_smaller():
    assert [v.other for v in verdicts(RESULTS[:2])] == [None]
    assert str(verdicts(RESULTS[:2])[0]) == "For 8 bytes take PCA with 4 active, 50.0%."
    assert verdicts(RESULTS[:1]) == []
