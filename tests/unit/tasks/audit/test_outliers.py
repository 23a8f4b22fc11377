import numpy as np

from tasks.audit.outliers import find


def test_outliers__are_far_from_their_own_class() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100)
    x = rng.standard_normal((200, 4)).astype(np.float32)
    x[100:, 0] += 30  # the other class is elsewhere, and no outlier there
    x[7, 1] += 40
    x[150, 0] -= 30
    found = find(x, labels, 5.0)
    assert found.rows.tolist() == [7, 150]
    assert found.score[0] > found.score[1] > 5


def test_outliers__distances_count_in_the_spread_of_the_data() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((200, 2)).astype(np.float32) * np.array([100, 1], np.float32)
    x[3] = [150, 0]  # 1.5 deviations
    x[5] = [0, 25]  # 25 deviations
    assert find(x, np.zeros(200, dtype=np.int64), 5.0).rows.tolist() == [5]


def test_outliers__small_classes_are_judged_by_all_distances() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((103, 3)).astype(np.float32)
    labels = np.array([0] * 100 + [1] * 3)
    assert find(x, labels, 8.0).rows.tolist() == []


def test_outliers__identical_samples_have_none() -> None:
    assert find(np.ones((30, 2), np.float32), np.zeros(30, dtype=np.int64), 5.0).rows.tolist() == []
