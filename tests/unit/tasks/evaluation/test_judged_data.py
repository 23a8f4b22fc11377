import math

import pytest

from tests.unit.tasks.evaluation.judged import FINDINGS, PARAMS, evaluation, judge, reason


@pytest.mark.parametrize(("above", "passed"), [(0.0, True), (0.001, False), (math.nan, False)])
def test_checks__wrong_labels_have_a_limit(above: float, passed: bool) -> None:
    got = judge(evaluation(), findings=FINDINGS.model_copy(update={"label_error_rate": 0.2 + above}))
    assert reason(got, "label_errors").passed is passed
    assert got.passed is passed


@pytest.mark.parametrize(
    ("leaked", "unchecked", "passed"), [(10, 0, True), (11, 0, False), (0, 10, True), (5, 6, False)]
)
def test_checks__what_leaked_or_could_not_be_compared_has_a_limit(
    leaked: int, unchecked: int, passed: bool
) -> None:
    found = FINDINGS.model_copy(update={"leaked": leaked, "unchecked": unchecked})
    got = judge(evaluation(samples=500), findings=found)  # 2 % are 10
    assert reason(got, "leakage").passed is passed
    assert ("without detail to compare" in reason(got, "leakage").detail) is (unchecked > 0)


def test_checks__pairs_that_were_not_kept_fail_closed() -> None:
    got = judge(evaluation(), findings=FINDINGS.model_copy(update={"truncated": True}))
    assert [r.check for r in got.reasons if not r.passed] == ["leakage"]
    assert "remove copies" in reason(got, "leakage").detail


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
    bad = FINDINGS.model_copy(update={"leaked": 300, "truncated": True, "label_error_rate": 0.9})
    got = judge(evaluation(), PARAMS.model_copy(update=none), findings=bad, quarantined=0.9)
    assert got.passed
    for check in ("leakage", "quarantined", "label_errors"):
        assert reason(got, check).detail.endswith("no limit set")
