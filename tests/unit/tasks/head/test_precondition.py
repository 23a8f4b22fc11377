import torch

from tasks.head.precondition import Basis


def rows(n: int, d: int) -> torch.Tensor:
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x - x.mean(0)


def test_inverse__is_that_of_the_curvature_and_the_penalty() -> None:
    for n, d in [(20, 4), (4, 20)]:  # with fewer rows than dimensions, V is thin
        x = rows(n, d)
        gradient = torch.ones(1, 2, d + 1, dtype=torch.float64)
        h, penalty = torch.tensor([[0.1, 0.2]], dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)
        found = Basis.of(x).inverse(gradient, h, penalty)
        for c in range(2):
            hessian = h[0, c] * x.T @ x / n + 0.3 * torch.eye(d, dtype=torch.float64)
            torch.testing.assert_close(hessian @ found[0, c, :-1], gradient[0, c, :-1])
            torch.testing.assert_close(found[0, c, -1] * h[0, c], gradient[0, c, -1])


def test_basis__is_orthonormal_with_values_that_are_not_negative() -> None:
    for n, d in [(30, 50), (50, 30)]:
        basis = Basis.of(rows(n, d))
        rank = basis.vectors.shape[1]
        assert rank == min(n - 1, d)  # centred: one less than there are rows
        torch.testing.assert_close(basis.vectors.T @ basis.vectors, torch.eye(rank, dtype=torch.float64))
        assert basis.values.min() >= 0
