from tasks.evaluation.data_report import audit_report, data_report
from tasks.records import Audit, DatasetVersion, Manifest, Rejected, Shift
from tests.unit.tasks.evaluation.judged import FINDINGS, HOSTILE, cells


def version(**changes: object) -> DatasetVersion:
    values = {
        "digest": "abc.dir", "folder": "f", "source": "s", "layout": "folders", "table": None,
        "files": 1200, "size_bytes": 41_000_000, "rejected": (),
    }  # fmt: skip
    return DatasetVersion.model_validate({**values, **changes})


def audit(*quarantined: Rejected) -> Audit:
    return Audit(digest="a", folder="f", samples=9, quarantined=quarantined, quarantined_fraction=0.0025)


def manifest(**changes: object) -> Manifest:
    counts = {"train": {"cat": 1000, "dog": 3}, "validation": {"cat": 4}, "test": {"cat": 5, "dog": 6}}
    values = {
        "digest": "m", "folder": "f", "samples": 1018, "classes": ("cat", "dog"), "slices": ("site",),
        "counts": counts, "conflicts": (), "left_out": (), "quarantined": 0,
    }  # fmt: skip
    return Manifest.model_validate({**values, **changes})


def test_data_report__counts_add_up() -> None:
    lines = data_report(version(), audit(), manifest()).splitlines()
    assert "| Class | Train | Validation | Test | All |" in lines
    assert "| cat | 1,000 | 4 | 5 | 1,009 |" in lines
    assert "| dog | 3 | 0 | 6 | 9 |" in lines
    assert "| **All** | 1,003 | 4 | 11 | 1,018 |" in lines
    assert "| Size | 1,200 files, 41.0 MB |" in lines
    assert "| Version (DVC) | abc.dir |" in lines


def test_data_report__many_classes_are_summed_up() -> None:
    classes = tuple(f"c{i:03d}" for i in range(130))
    counts = {"train": dict.fromkeys(classes, 2)}
    got = data_report(version(), audit(), manifest(classes=classes, counts=counts))
    assert "| c099 | 2 | 0 | 0 | 2 |" in got
    assert "c100" not in got
    assert "| 30 more classes | 60 | 0 | 0 | 60 |" in got


def test_data_report__lists_the_first_twenty_and_counts_the_rest() -> None:
    bad = [Rejected(path=f"p{i:02d}", reason="not an image") for i in range(23)]
    got = data_report(version(), audit(*bad), manifest(conflicts=bad[:1], left_out=bad[:2]))
    assert "## Quarantined: 23" in got
    assert got.count("| p19 | not an image |") == 1
    assert "p20" not in got
    assert "and 3 more" in got
    assert "## Conflicting labels: 1" in got
    assert "## Left out of training: 2" in got
    assert "## Not versioned" not in got


def test_data_report__excluded_samples_are_listed() -> None:
    gone = Rejected(path="a.jpg", reason="excluded")
    got = data_report(version(), audit(), manifest(excluded=(gone,), unmatched=("b.jpg",)))
    assert "## Excluded: 1" in got
    assert "## Entries of data.exclude that name no sample: 1" in got


def test_data_report__numbers_are_counted_together() -> None:
    counts = {"train": {"": 7}, "validation": {"": 2}, "test": {"": 3}}
    got = data_report(version(), audit(), manifest(target="number", classes=(), counts=counts))
    assert "| Samples | 1,018, each with a number |" in got
    assert "| **All** | 7 | 2 | 3 | 12 |" in got


def test_data_report__labels_have_no_sum() -> None:
    got = data_report(version(), audit(), manifest(target="labels"))
    assert "| Samples | 1,018 in 2 labels |" in got
    assert "**All**" not in got


def test_data_report__hostile_names_break_no_table() -> None:
    bad = Rejected(path=HOSTILE, reason=HOSTILE)
    hostile = manifest(
        classes=(HOSTILE,), counts={"train": {HOSTILE: 2}}, slices=(HOSTILE,), conflicts=(bad,)
    )
    report = data_report(version(source=HOSTILE, layout="table", table=HOSTILE), audit(bad), hostile)
    assert_tables_hold(report)


def test_audit_report__says_what_was_found() -> None:
    shift = Shift(between="train and test", samples=(100, 30), accuracy=0.51, p_value=0.4)
    found = FINDINGS.model_copy(
        update={"confusable": (("cat", "dog", 0.125),), "shifts": (shift,), "notes": ("no champion",)}
    )
    lines = audit_report(found).splitlines()
    assert "| Leakage | 1 test samples (0.2%) nearly repeat one of train |" in lines
    assert "| Label errors | 9 flagged; 3.0% of the labels, estimated |" in lines
    assert "| cat | dog | 12.5% |" in lines
    assert "| train and test | 100 and 30 | 51.0% | 0.400 |" in lines
    assert "- no champion" in lines


def test_audit_report__what_was_not_found_has_no_section() -> None:
    got = audit_report(FINDINGS.model_copy(update={"label_error_rate": None, "imbalance": None}))
    assert "## " not in got
    assert "share not estimated" in got


def test_audit_report__hostile_names_break_no_table() -> None:
    assert_tables_hold(
        audit_report(
            FINDINGS.model_copy(
                update={
                    "confusable": ((HOSTILE, HOSTILE, 0.1),),
                    "group_leaks": (HOSTILE,),
                    "notes": (HOSTILE,),
                }
            )
        )
    )


def assert_tables_hold(report: str) -> None:
    assert "<" not in report
    assert "://" not in report
    width = 0
    for line in report.splitlines():
        width = (width or len(cells(line))) if line.startswith("|") else 0
        assert not line.startswith("|") or len(cells(line)) == width, line
