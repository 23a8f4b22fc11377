"""Whether there are enough samples to cross-validate; known before anything is embedded."""

from collections.abc import Mapping

from tasks.errors import DataError


def check_folds(counts: Mapping[str, int], folds: int) -> None:
    """Every class needs a training sample in every fold.

    Args:
        counts: training samples of each class.

    Raises:
        DataError: one has fewer; the message has the count.
    """
    label = min(counts, key=lambda name: counts[name])
    if counts[label] < folds:
        raise DataError(
            f"class {label!r} has {counts[label]} training samples, fewer than head.folds = {folds};"
            " add samples or lower head.folds"
        )
