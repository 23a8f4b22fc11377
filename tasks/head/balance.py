"""What is done about rare classes, alike in fitting, choice and calibration."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tasks.head.fitted import Calibration
from tasks.head.linear import Matrix
from tasks.params import HeadParams
from tasks.records import Kind


@dataclass(frozen=True)
class Balance:
    """Weights and adjustments; N samples, K classes.

    Judged by weighted samples, a head is chosen and calibrated for a world in which the classes are
    equally frequent, which is what both remedies aim at. The shares are those of all samples: they
    say how the classes are weighed, and nothing that a fold could be judged by.
    """

    fitting: Matrix | None = None  # [N], weight of each sample in the fit
    judging: Matrix | None = None  # [N], in the loss that chooses and calibrates
    adjustments: tuple[tuple[Kind, Matrix], ...] = ()  # [K], added to a kind's logits

    @classmethod
    def of(
        cls, y: NDArray[np.int64], classes: int, imbalance: str, counted: NDArray[np.bool_] | None = None
    ) -> Self:
        """Of class indices y [N] by `HeadParams.imbalance`.

        Args:
            counted: [N], the rows whose classes are counted; none: all.

        Logit adjustment: Menon et al., https://arxiv.org/abs/2007.07314, after the fit.
        """
        counts = np.bincount(y if counted is None else y[counted], minlength=classes)
        total = int(counts.sum())
        log_share = np.log((counts + 0.5) / (total + 0.5 * classes))
        if imbalance == "none":
            # The class means alone do not know how frequent a class is.
            return cls(adjustments=(("prototype", log_share),))
        weight = (total / (classes * np.maximum(counts, 1)))[y]
        if imbalance == "balanced":  # votes of neighbours have no loss to be weighed in
            return cls(weight, weight, (("knn", -log_share),))
        return cls(None, weight, (("logistic", -log_share), ("mlp", -log_share), ("knn", -log_share)))

    def adjusted(self, logits: Matrix, kind: Kind) -> Matrix:
        """Logits […, K] as they are calibrated."""
        adjustment = dict(self.adjustments).get(kind)
        return logits if adjustment is None else logits + adjustment

    def before(self, calibration: Calibration, kind: Kind) -> Calibration:
        """The same calibration for logits that are not adjusted yet."""
        return Calibration(
            calibration.scale, calibration(self.adjusted(np.zeros_like(calibration.bias), kind))
        )


def balance_of(
    y: NDArray[np.generic], outputs: int, params: HeadParams, counted: NDArray[np.bool_] | None = None
) -> Balance:
    """Of [N] class indices, of which the `counted` rows [N] (none: all) say how frequent a class is;
    labels and numbers are taken as they come."""
    if y.ndim == 1 and np.issubdtype(y.dtype, np.integer):
        return Balance.of(np.asarray(y, dtype=np.int64), outputs, params.imbalance, counted)
    return Balance()
