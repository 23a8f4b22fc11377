import math

import pytest

from tests.unit.tasks.evaluation.judged import FINDINGS, PARAMS, evaluation, judge, reason


@pytest.mark.parametrize(
    ("field", "check", "limit"), [("leakage", "leakage", 0.02), ("label_error_rate", "label_errors", 0.2)]
)
@pytest.mark.parametrize(("above", "passed"), [(0.0, True), (0.001, False), (math.nan, False)])
def test_checks__findings_have_a_limit(
    field: str, check: str, limit: float, above: float, passed: bool
) -> None:
    got = judge(evaluation(), findings=FINDINGS.model_copy(update={field: limit + above}))
    assert reason(got, check).passed is passed
    assert got.passed is passed


def test_checks__group_in_several_splits_is_an_error() -> None:
    got = judge(evaluation(), findings=FINDINGS.model_copy(update={"group_leaks": ("part-7", "part-9")}))
    assert [r.check for r in got.reasons if not r.passed] == ["group_leaks"]
    assert reason(got, "group_leaks").detail == "groups with samples in several splits: part-7, part-9"


@pytest.mark.parametrize(("share", "passed"), [(0.05, True), (0.051, False), (math.nan, False)])
def test_checks__quarantined_share(share: float, passed: bool) -> None:
    assert judge(evaluation(), quarantined=share).passed is passed


def test_checks__data_that_was_not_audited_fails_closed() -> None:
    got = judge(evaluation(), findings=None)
    assert [r.check for r in got.reasons if not r.passed] == ["leakage", "group_leaks", "label_errors"]
    assert reason(got, "leakage").detail == "the data was not audited"


def test_checks__share_of_wrong_labels_must_be_estimated_for_classes() -> None:
    unknown = FINDINGS.model_copy(update={"label_error_rate": None})
    got = reason(judge(evaluation(), findings=unknown), "label_errors")
    assert (got.passed, got.detail) == (False, "the share of wrong labels was not estimated")


def test_checks__without_a_limit_are_listed_as_passed() -> None:
    none = {"max_leakage": None, "max_quarantined": None, "max_label_errors": None}
    bad = FINDINGS.model_copy(update={"leakage": 0.9, "label_error_rate": 0.9})
    got = judge(evaluation(), PARAMS.model_copy(update=none), findings=bad, quarantined=0.9)
    assert got.passed
    for check in ("leakage", "quarantined", "label_errors"):
        assert reason(got, check).detail.endswith("no limit set")
