"""`predictions.parquet`: what was said about each test sample."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from tasks.data.labels import SEPARATOR
from tasks.evaluation.sums import THRESHOLD, Floats, sound
from tasks.records import Target


def write(
    file: Path,
    test: pd.DataFrame,
    outputs: Floats,
    champion: Floats | None,
    *,
    target: Target,
    classes: Sequence[str],
    known: Sequence[str],
) -> None:
    """Writes digest, path, label, predicted, confidence (not of numbers), `p:CLASS` of the challenger's
    classes, and champion_predicted. Where a row can't be judged, predicted and confidence are empty.

    Args:
        outputs: [N, K], of classes and labels with the columns `known`.
        champion: the same of the champion.
        classes: the challenger's.
    """
    columns: dict[str, object] = {name: test[name] for name in ("digest", "path", "label")}
    columns["predicted"] = predicted(outputs, known, target)
    if target != "number":
        sure = outputs.max(axis=1) if target == "class" else np.maximum(outputs, 1 - outputs).min(axis=1)
        columns["confidence"] = np.where(sound(outputs, target), sure, np.nan)
        columns |= {f"p:{label}": outputs[:, known.index(label)] for label in classes}
    if champion is not None:
        columns["champion_predicted"] = predicted(champion, known, target)
    pd.DataFrame(columns).to_parquet(file, index=False)


def predicted(outputs: Floats, known: Sequence[str], target: Target) -> pd.Series:
    """The answer for each row [N]: the top class, the labels joined by SEPARATOR, or the number; none
    where the row can't be judged."""
    good = sound(outputs, target)
    if target == "number":
        return pd.Series(np.where(good, outputs[:, 0], np.nan))
    names = np.asarray(known, dtype=object)
    if target == "class":
        answers = names[np.where(good[:, None], outputs, 0).argmax(axis=1)]
    else:
        answers = np.array([SEPARATOR.join(names[row >= THRESHOLD]) for row in outputs], dtype=object)
    return pd.Series(answers, dtype=object).where(good, None)
