from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.audit import neighbours
from tasks.audit.neighbours import Pairs, alike, correlations, joined


def noise(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16), dtype=np.uint8)


def pairs(found: Pairs) -> list[tuple[int, int, bool]]:
    columns = (found.first.tolist(), found.second.tolist(), found.mirrored.tolist())
    return sorted(zip(*columns, strict=True))


def test_alike__finds_copies_brighter_copies_and_mirror_images() -> None:
    thumbnails = noise(300)
    thumbnails[250] = thumbnails[10]
    thumbnails[251] = thumbnails[20] // 2 + 60  # less contrast, brighter
    thumbnails[252] = thumbnails[30][:, ::-1]
    found = alike(thumbnails, 0.9)
    assert pairs(found) == [(10, 250, False), (20, 251, False), (30, 252, True)]
    assert (found.correlation > 0.98).all()
    assert (found.found, found.plain) == (3, 0)


def test_alike__is_that_of_all_pairs_compared_one_by_one() -> None:
    base = noise(40, seed=1).astype(np.int64)
    mixed = np.concatenate([base, (base + base[::-1]) // 2]).astype(np.uint8)
    low, high = alike(mixed, 0.4), alike(mixed, 0.6)
    # A mixture correlates by about .71 with each of the two that it is made of.
    assert set(pairs(high)) < set(pairs(low)) or pairs(high) == pairs(low)
    made_of = {(at, 40 + at, False) for at in range(40)} | {(39 - at, 40 + at, False) for at in range(40)}
    assert made_of <= set(pairs(high))


def test_alike__is_not_led_by_what_all_images_have_in_common() -> None:
    scene = noise(1)[0].astype(np.int64)
    parts = np.random.default_rng(1).integers(-12, 13, (200, 16, 16))
    thumbnails = np.clip(scene + parts, 0, 255).astype(np.uint8)
    assert pairs(alike(thumbnails, 0.9)) == []
    thumbnails[7] = thumbnails[3]
    assert pairs(alike(thumbnails, 0.9)) == [(3, 7, False)]


def test_alike__plain_images_are_not_compared_but_counted() -> None:
    thumbnails = noise(30)
    thumbnails[:4] = 128
    found = alike(thumbnails, 0.9)
    assert (pairs(found), found.plain) == ([], 4)
    assert alike(thumbnails[:4], 0.9).plain == 4


def test_alike__of_too_many_pairs_the_most_alike_are_kept() -> None:
    thumbnails = noise(60)
    rough = np.random.default_rng(2).integers(-30, 31, (20, 16, 16))
    thumbnails[:20] = np.clip(thumbnails[0] + rough, 0, 255).astype(np.uint8)
    every = alike(thumbnails, 0.8)
    some = alike(thumbnails, 0.8, limit=10)
    assert len(every.first) == 20 * 19 // 2
    assert some.found >= len(every.first)
    assert list(some.correlation) == list(every.correlation[:10])


def test_alike__of_too_many_pairs_leaks_are_kept_first() -> None:
    thumbnails = noise(60)
    thumbnails[:20] = thumbnails[0]  # 190 pairs, all exact
    thumbnails[40] = np.clip(thumbnails[30].astype(int) + noise(1, seed=3)[0] // 4 - 32, 0, 255)
    splits = np.zeros(60, dtype=np.int64)
    splits[40] = 2  # the only one of test
    some = alike(thumbnails, 0.9, splits, limit=10)
    assert (some.first[0], some.second[0], len(some.first)) == (30, 40, 10)
    assert some.correlation[0] < some.correlation[1]
    assert not some.truncated
    splits[10:20] = 2  # 100 leaks of the first
    assert alike(thumbnails, 0.9, splits, limit=10).truncated


def test_joined__has_each_pair_once_and_knows_what_was_left_out() -> None:
    thumbnails = noise(40)
    thumbnails[30] = thumbnails[3]
    splits = np.zeros(40, dtype=np.int64)
    one = alike(thumbnails, 0.9)
    both = joined([one, one], splits, one.detail)
    assert (pairs(both), both.found, both.truncated) == ([(3, 30, False)], 2, False)
    assert joined([one, replace(one, truncated=True)], splits, one.detail).truncated


def test_correlations__are_of_the_detail_also_of_mirror_images() -> None:
    a, b = noise(3), noise(3, seed=1)
    b[0], b[1] = a[0], a[1][:, ::-1]
    found = correlations(a, b, np.array([False, True, False]))
    np.testing.assert_allclose(found[:2], 1, atol=1e-6)
    assert abs(found[2]) < 0.3


def test_alike__by_torch_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    thumbnails = noise(100)
    thumbnails[50:60] = thumbnails[:10, :, ::-1]
    by_numpy = alike(thumbnails, 0.9)
    monkeypatch.setattr(neighbours, "_WORTH", 0)
    monkeypatch.setattr(neighbours, "_device", lambda: "cpu")
    by_torch = alike(thumbnails, 0.9)
    assert pairs(by_torch) == pairs(by_numpy) == [(at, 50 + at, True) for at in range(10)]
    assert by_torch.correlation.tolist() == by_numpy.correlation.tolist()
