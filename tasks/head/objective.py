"""The regularised logistic loss of many folds at once, and its gradient, in one pass over the rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.head.blocks import Blocks
from tasks.head.calibrate import Link


@dataclass(frozen=True)
class Scaling:
    """How each fold standardises its rows: z = (x − mean) / scale."""

    mean: Tensor  # [F, D], float64
    scale: Tensor  # [F, D], float64
    count: Tensor  # [F], float64: the rows' weights, summed


@dataclass(frozen=True)
class Value:
    """Of some lanes, without the penalty."""

    loss: Tensor  # [A], float64
    gradient: Tensor  # [A, C, D + 1], by the weights in z and the bias
    curvature: Tensor  # [A, C], float64: the mean of p (1 − p)


class Objective:
    """1/N Σᵢ wᵢ lossᵢ of weights and biases in each fold's own standardised coordinates.

    All folds share the same rows x: with z = (x − mean) / scale, W z + b = (W / scale) x + b',
    where b' = b − (W / scale) mean. So a pass is two products with x whatever the number of folds.

    Args:
        y: softmax: classes [N]; sigmoid: [N, C] in 0..1. In the order of the blocks' rows.
        weight: [N] or None, likewise.
    """

    def __init__(
        self, blocks: Blocks, y: Tensor, weight: Tensor | None, link: Link, scaling: Scaling
    ) -> None:
        self.passes = 0
        self._blocks, self._y, self._weight, self._link = blocks, y, weight, link
        self._scaling = scaling
        self._shift = scaling.mean - blocks.centre.double()

    def __call__(self, theta: Tensor, folds: Tensor) -> Value:
        """Of θ [A, C, D + 1] (the bias last), each in one of the `folds` [A]."""
        self.passes += 1
        scale, shift = self._scaling.scale[folds][:, None], self._shift[folds][:, None]  # [A, 1, D]
        lanes, classes, d = len(theta), theta.shape[1], theta.shape[2] - 1
        raw = theta[..., :d].double() / scale
        bias = (theta[..., d].double() - (raw * shift).sum(-1)).to(theta.dtype)
        raw = raw.to(theta.dtype)
        loss = torch.zeros(lanes, dtype=torch.float64, device=theta.device)
        curvature = loss.new_zeros(lanes, classes)
        of_bias = loss.new_zeros(lanes, classes)
        of_raw = loss.new_zeros(lanes, classes, d)
        for x, pieces in self._blocks:
            for piece in pieces:
                (who,) = piece.folds[folds].nonzero(as_tuple=True)
                if not len(who):
                    continue
                rows = x[piece.start : piece.stop]
                place = slice(piece.first, piece.first + piece.stop - piece.start)
                z = (raw[who].view(-1, d) @ rows.T).view(len(who), classes, -1)
                z += bias[who][..., None]
                weight = None if self._weight is None else self._weight[place]
                found, p = self._residual(z, self._y[place], weight, curvature, who)
                loss[who] += found
                of_raw[who] += (p.view(len(who) * classes, -1) @ rows).view(len(who), classes, d)
                of_bias[who] += p.sum(-1)
        count = self._scaling.count[folds]
        of_bias /= count[:, None]
        of_z = (of_raw / count[:, None, None] - of_bias[..., None] * shift) / scale
        gradient = torch.cat([of_z, of_bias[..., None]], -1)
        return Value(loss / count, gradient.to(theta.dtype), curvature / count[:, None])

    def _residual(
        self, z: Tensor, y: Tensor, weight: Tensor | None, curvature: Tensor, who: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss of each lane and p − y [A, C, B], both weighted; z [A, C, B] is overwritten."""
        if self._link == "softmax":
            index = y.expand(len(z), 1, -1)
            z -= z.amax(1, keepdim=True)
            right = z.gather(1, index)[:, 0]
            p = z.exp_()
            total = p.sum(1, keepdim=True)
            loss = total[:, 0].log() - right  # [A, B]
            p /= total
        else:
            index = None
            target = y.T  # [C, B]
            loss = (torch.nn.functional.softplus(z) - z * target).sum(1)
            p = z.sigmoid_()
        spread = p - p * p
        if weight is not None:
            loss, spread = loss * weight, spread * weight
        curvature[who] += spread.sum(-1)
        if index is not None:
            p.scatter_add_(1, index, p.new_full((1, 1, 1), -1.0).expand_as(index))
        else:
            p -= target
        if weight is not None:
            p *= weight
        return loss.sum(-1, dtype=torch.float64), p


def scaling(blocks: Blocks, weight: Tensor | None, folds: int, parts: Sequence[int]) -> Scaling:
    """Mean, and one scale for each part (the root of its mean variance), of each fold's own rows.

    One scale for a part, because a backbone has dimensions that hardly ever fire: to blow each of
    them up to variance 1 raises their noise to the rank of signal (surface inspection: test log
    loss .495 instead of .440). Weights count as repeated rows do.
    """
    count = torch.zeros(folds, dtype=torch.float64, device=blocks.centre.device)
    first = count.new_zeros(folds, blocks.d)
    second = count.new_zeros(folds, blocks.d)
    for x, pieces in blocks:
        for piece in pieces:
            rows = x[piece.start : piece.stop]
            place = slice(piece.first, piece.first + len(rows))
            w = rows.new_ones(len(rows)) if weight is None else weight[place]
            count[piece.folds] += w.sum(dtype=torch.float64)
            first[piece.folds] += (w @ rows).double()
            second[piece.folds] += (w @ (rows * rows)).double()
    shift = first / count[:, None]
    variance = (second / count[:, None] - shift**2).clamp_min(0)
    # By the number of parts, so that several do not count for more than one does.
    scales = [part.mean(1, keepdim=True).sqrt() for part in torch.split(variance, list(parts), 1)]
    # A part that is all the same stays at 0.
    scale = torch.cat(
        [torch.where(s > 0, s, 1.0).expand(-1, n) for s, n in zip(scales, parts, strict=True)], 1
    )
    return Scaling(blocks.centre.double() + shift, scale * len(parts) ** 0.5, count)
