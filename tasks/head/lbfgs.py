"""L-BFGS on several problems side by side: every pass evaluates one point of each that still runs.

Nocedal and Wright, Numerical Optimization, 7.2. A step is taken where the loss falls enough or,
where its differences drown in rounding, where the slope says so: the approximate Wolfe conditions
of Hager and Zhang (2005).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.head.objective import Value
from tasks.head.precondition import Basis

MEMORY = 10  # pairs of steps and changes of the gradient; 20 or 40 save no pass
SUFFICIENT = 1e-4  # of the decrease that the slope promises
SHORTEST = 1e-6  # below this share of the step nothing is to be found
PATIENCE = 50  # steps in which neither the loss nor the gradient falls: only rounding is left

Evaluate = Callable[[Tensor, Tensor], Value]


@dataclass(frozen=True)
class Minimum:
    theta: Tensor  # [C, D + 1], the bias last
    gradient: float  # greatest absolute entry
    iterations: int  # points evaluated


class Lanes:
    """Each lane walks along its own penalties, from the greatest to the least, starting from the
    minimum before. None waits for another, so a pass over the rows serves all that are under way.

    Args:
        evaluate: the loss without penalty at θ [A, C, D + 1] of some lanes [A].
        start: θ [F, C, D + 1].
        penalties: λ [F, S] of λ‖W‖²/2, falling along S.
        basis: for the initial inverse Hessian.
    """

    def __init__(self, evaluate: Evaluate, start: Tensor, penalties: Tensor, basis: Basis) -> None:
        lanes, classes, width = start.shape
        self._evaluate, self._basis, self._penalties = evaluate, basis, penalties
        value = evaluate(start, torch.arange(lanes, device=start.device))
        self._theta = start.clone()
        self._penalty = penalties[:, 0].clone()
        self._loss, self._gradient = _penalised(value, start, self._penalty)
        self._curvature = value.curvature  # where the lane is
        self._first_curvature = value.curvature.clone()  # where it began the present strength
        self._direction = torch.zeros_like(start)
        self._slope = torch.zeros_like(self._loss)
        self._steps = start.new_zeros(lanes, MEMORY, classes, width)
        self._changes = torch.zeros_like(self._steps)
        self._rho = start.new_zeros(lanes, MEMORY)  # 1 / (step · change), 0: an empty place
        self._next = torch.zeros(lanes, dtype=torch.long, device=start.device)  # place to write to
        self._length = [1.0] * lanes  # of the step to try
        self._iterations = [0] * lanes
        self._least = [(float("inf"), float("inf"))] * lanes  # loss and gradient so far
        self._idle = [0] * lanes  # steps since either fell
        self._found: list[list[Minimum]] = [[] for _ in range(lanes)]

    def run(
        self, tolerance: float, max_iterations: int, enough: Callable[[list[list[Minimum]]], bool]
    ) -> list[list[Minimum]]:
        """The minima [F][S]: the greatest entry of the gradient is at most `tolerance`, unless
        `max_iterations` or the precision of the numbers came first.

        Args:
            enough: asked with the minima so far whenever all lanes have those of one more strength;
                where it says so, these are all.
        """
        strengths = self._penalties.shape[1]
        turning = list(range(len(self._found)))
        asked = 0
        while True:
            for lane in turning:
                self._record(lane, tolerance, max_iterations)
            while asked < min(map(len, self._found)):
                asked += 1
                some = [minima[:asked] for minima in self._found]
                if enough(some):
                    return some
            running = [lane for lane, minima in enumerate(self._found) if len(minima) < strengths]
            if not running:
                return self._found
            self._turn([lane for lane in turning if lane in running])
            turning = self._try(running, max_iterations)

    def _record(self, lane: int, tolerance: float, max_iterations: int) -> None:
        """Notes the minimum if it is reached, and goes on to the strengths it is no minimum of."""
        while len(self._found[lane]) < self._penalties.shape[1]:
            steepest = float(self._gradient[lane].abs().max())
            stuck = self._length[lane] <= SHORTEST
            if stuck and bool(self._rho[lane].any()):  # perhaps the history misled
                self._rho[lane], stuck = 0, False
            stuck = stuck or self._rests(lane, steepest)
            if steepest > tolerance and self._iterations[lane] < max_iterations and not stuck:
                return
            theta = self._theta[lane].clone()
            self._found[lane].append(Minimum(theta, steepest, self._iterations[lane]))
            if len(self._found[lane]) < self._penalties.shape[1]:
                self._lessen(lane, self._penalties[lane, len(self._found[lane])])

    def _lessen(self, lane: int, penalty: Tensor) -> None:
        """The next strength, at the same place."""
        less = penalty - self._penalty[lane]
        weight = self._theta[lane, :, :-1]
        self._loss[lane] += 0.5 * less * (weight.double() ** 2).sum()
        self._gradient[lane, :, :-1] += less.to(weight.dtype) * weight
        self._penalty[lane] = penalty
        self._first_curvature[lane] = self._curvature[lane]
        self._rho[lane] = 0  # to take the history along costs passes: it belongs to other curvature
        self._iterations[lane], self._length[lane] = 0, 1.0
        self._idle[lane], self._least[lane] = 0, (float("inf"), float("inf"))

    def _rests(self, lane: int, steepest: float) -> bool:
        """Whether the numbers have no more precision to give: noted at each step taken."""
        loss, (least_loss, least_gradient) = float(self._loss[lane]), self._least[lane]
        noise = torch.finfo(self._theta.dtype).eps * (1 + abs(loss))
        falls = loss < least_loss - noise or steepest < 0.9 * least_gradient
        self._idle[lane] = 0 if falls else self._idle[lane] + 1
        self._least[lane] = min(loss, least_loss), min(steepest, least_gradient)
        return self._idle[lane] >= PATIENCE

    def _turn(self, lanes: Sequence[int]) -> None:
        """A new direction for some lanes: the two loops of L-BFGS."""
        if not lanes:
            return
        who = torch.tensor(lanes, device=self._theta.device)
        q = -self._gradient[who]
        places = [(self._next[who] - back) % MEMORY for back in range(1, MEMORY + 1)]  # newest first
        alphas: list[Tensor] = []
        for place in places:
            alpha = self._rho[who, place] * (self._steps[who, place] * q).sum((1, 2))
            q -= alpha[:, None, None] * self._changes[who, place]
            alphas.append(alpha)
        r = self._basis.inverse(q, self._first_curvature[who].to(q.dtype), self._penalty[who].to(q.dtype))
        for place, alpha in zip(reversed(places), reversed(alphas), strict=True):
            beta = self._rho[who, place] * (self._changes[who, place] * r).sum((1, 2))
            r += (alpha - beta)[:, None, None] * self._steps[who, place]
        self._direction[who] = r
        self._slope[who] = (r.double() * self._gradient[who]).sum((1, 2))
        for lane in lanes:
            self._length[lane] = 1.0

    def _try(self, running: Sequence[int], max_iterations: int) -> list[int]:
        """Evaluates a step of each running lane; returns the lanes that took it or give it up."""
        who = torch.tensor(running, device=self._theta.device)
        t = torch.tensor([self._length[lane] for lane in running], dtype=torch.float64, device=who.device)
        here, slope, direction = self._loss[who], self._slope[who], self._direction[who]
        theta = self._theta[who] + t.to(direction.dtype)[:, None, None] * direction
        value = self._evaluate(theta, who)
        loss, gradient = _penalised(value, theta, self._penalty[who])
        there = (direction.double() * gradient).sum((1, 2))  # the slope at the other end
        # p near 1 is what rounding makes of it, so even a loss near 0 is only so exact.
        noise = 10 * torch.finfo(direction.dtype).eps * (1 + here.abs())
        taken = (loss <= here + SUFFICIENT * t * slope) | (
            (loss <= here + noise) & (there <= (2 * SUFFICIENT - 1) * slope)
        )
        taken &= loss.isfinite() & there.isfinite()
        secant = (t * slope / (slope - there)).nan_to_num(0.0)  # where a quadratic has its minimum
        shorter = torch.minimum(torch.maximum(secant, 0.1 * t), 0.5 * t).tolist()

        moved = who[taken]
        self._remember(moved, theta[taken] - self._theta[moved], gradient[taken] - self._gradient[moved])
        self._theta[moved], self._loss[moved] = theta[taken], loss[taken]
        self._gradient[moved], self._curvature[moved] = gradient[taken], value.curvature[taken]
        turning = []
        for lane, took, length in zip(running, taken.tolist(), shorter, strict=True):
            self._iterations[lane] += 1
            if not took:
                self._length[lane] = length
            if took or length <= SHORTEST or self._iterations[lane] >= max_iterations:
                turning.append(lane)
        return turning

    def _remember(self, lanes: Tensor, step: Tensor, change: Tensor) -> None:
        product = (step * change).sum((1, 2))
        bent = product > torch.finfo(step.dtype).tiny  # the loss is convex: only rounding says otherwise
        lanes, place = lanes[bent], self._next[lanes[bent]]
        self._steps[lanes, place], self._changes[lanes, place] = step[bent], change[bent]
        self._rho[lanes, place] = 1 / product[bent]
        self._next[lanes] = (place + 1) % MEMORY


def _penalised(value: Value, theta: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor]:
    weight = theta[..., :-1]
    gradient = value.gradient.clone()
    gradient[..., :-1] += penalty.to(theta.dtype)[:, None, None] * weight
    return value.loss + 0.5 * penalty * (weight.double() ** 2).sum((1, 2)), gradient
