import numpy as np
import pytest

from tasks.report.embedding_map import principal_components


@pytest.mark.parametrize("shape", [(40, 5), (5, 40)])
def test_principal_components__agree_with_the_singular_values(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).normal(size=shape) * np.linspace(3, 0.1, shape[1])
    places, explained = principal_components(x)
    values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    # The length of each column of U·S is its singular value.
    np.testing.assert_allclose(np.linalg.norm(places, axis=0), values[:2])
    assert explained == pytest.approx((values[:2] ** 2).sum() / (values**2).sum())


def test_principal_components__signs_are_fixed() -> None:
    x = np.random.default_rng(1).normal(size=(30, 4))
    places, _ = principal_components(x)
    assert (places[np.abs(places).argmax(axis=0), [0, 1]] > 0).all()


@pytest.mark.parametrize("x", [np.ones((1, 3)), np.ones((4, 1)), np.zeros((3, 3))])
def test_principal_components__of_nothing_to_see(x: np.ndarray) -> None:
    places, explained = principal_components(x)
    assert places.shape == (len(x), 2)
    assert explained == 0
