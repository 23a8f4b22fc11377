"""What a label is: one class, any number of names, or a number; and how many there are of each."""

import math
from collections import Counter
from collections.abc import Iterable

from tasks.errors import DataError
from tasks.records import SPLITS, Target

SEPARATOR = "|"
_SHOWN = 20  # classes that an error lists


def names(label: str) -> tuple[str, ...]:
    """The names in a label of the target `labels`, sorted and each once; none in an empty one."""
    return tuple(sorted({name for part in label.split(SEPARATOR) if (name := part.strip())}))


def normal(labels: Iterable[str], paths: Iterable[str], target: Target) -> list[str]:
    """The labels as the manifest has them, see `manifest.run`.

    Raises:
        DataError: the target is a number and some labels are none, or not finite.
    """
    if target == "class":
        return list(labels)
    if target == "labels":
        return [SEPARATOR.join(names(label)) for label in labels]
    pairs = list(zip(paths, labels, strict=True))
    numbers = [_number(label) for _, label in pairs]
    bad = [pair for pair, number in zip(pairs, numbers, strict=True) if number is None]
    if bad:
        path, label = min(bad)
        raise DataError(
            f"{path}: the label {label!r} is not a finite number; {len(bad):,} of {len(pairs):,} labels are"
            " none. Correct them, leave them out (data.exclude), or set data.target to class"
        )
    # 0 and -0 are one number, of which repr makes two texts.
    return [repr(number + 0.0) for number in numbers if number is not None]


def classes(labels: Iterable[str], target: Target) -> tuple[str, ...]:
    """All names, sorted; of numbers none."""
    if target == "number":
        return ()
    found = set(labels)
    return tuple(sorted(found if target == "class" else {name for label in found for name in names(label)}))


def counts(
    labels: Iterable[str], split: Iterable[str], classes: Iterable[str], target: Target
) -> dict[str, dict[str, int]]:
    """Split -> class -> samples of it; of a number split -> `` -> samples."""
    found: Counter[tuple[str, str]] = Counter()
    for name, label in zip(split, labels, strict=True):
        of = names(label) if target == "labels" else (label,) if target == "class" else ("",)
        found.update((name, each) for each in of)
    wanted = ("",) if target == "number" else tuple(classes)
    return {name: {label: found[name, label] for label in wanted} for name in SPLITS}


def check_counts(
    counts: dict[str, dict[str, int]], classes: tuple[str, ...], target: Target, least: int
) -> None:
    """Every class needs `least` samples in each split, as does each split of numbers.

    Raises:
        DataError: one has fewer, or there are too few classes.
    """
    if target == "number":
        small = [f"{counts[name]['']:,} {name}" for name in SPLITS if counts[name][""] < least]
        if small:
            raise DataError(
                f"too few samples in a split: {', '.join(small)}; {least} are needed (data.min_per_class)."
                " Add samples, or raise data.validation_fraction or data.test_fraction"
            )
        return
    if target == "labels" and not classes:
        raise DataError("no sample has a label; name some, with | between several")
    if target == "class" and len(classes) < 2:
        raise DataError(f"only one class is left ({', '.join(classes)}); two are needed")
    short = [label for label in classes if any(counts[name][label] < least for name in SPLITS)]
    if not short:
        return
    shown = [
        f"{label} {', '.join(f'{counts[name][label]:,} {name}' for name in SPLITS)}"
        for label in short[:_SHOWN]
    ]
    more = f"; and {len(short) - _SHOWN:,} more classes" if len(short) > _SHOWN else ""
    raise DataError(
        f"{len(short)} of {len(classes)} classes have fewer than {least} samples in a split"
        f" (data.min_per_class): {'; '.join(shown)}{more}. Add samples, raise data.validation_fraction or"
        " data.test_fraction, or remove the class"
    )


def _number(label: str) -> float | None:
    try:
        value = float(label)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
