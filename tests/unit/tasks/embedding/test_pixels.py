import pytest
import torch

from tasks.embedding.pixels import PixelMeans, preprocess


@pytest.mark.parametrize("size", [16, 64])
def test_pixel_means__are_the_means_of_squares(size: int) -> None:
    x = torch.rand(2, 3, size, size)
    side = size // 16
    found = PixelMeans()(x).view(2, 3, 16, 16)
    expected = x[1, 2, 3 * side : 4 * side, 5 * side : 6 * side].mean()
    torch.testing.assert_close(found[1, 2, 3, 5], expected)


def test_preprocess__shows_the_shorter_side_as_a_whole() -> None:
    assert (preprocess(None).resize, preprocess(None).size) == (64, 64)
    assert (preprocess(32).resize, preprocess(32).size) == (32, 32)
