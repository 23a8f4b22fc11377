import numpy as np

from tasks.audit.classes import confusable, imbalance


def test_confusable__is_the_share_of_two_classes_that_is_mistaken() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
    said = np.array([0, 0, 1, 1, 1, 1, 1, 0, 2, 1])
    one_hot = np.eye(3, dtype=np.bool_)
    got = confusable(one_hot[said], one_hot[labels], ("cat", "dog", "fox"))
    # Of the 8 cats and dogs 3 are mistaken for the other; of the 6 dogs and foxes 1.
    assert got == (("cat", "dog", 3 / 8), ("dog", "fox", 1 / 6))


def test_confusable__of_sets_of_labels_counts_one_missed_for_the_other() -> None:
    truth = np.array([[1, 0], [1, 0], [0, 1], [1, 1]], dtype=np.bool_)
    said = np.array([[0, 1], [1, 0], [0, 1], [1, 1]], dtype=np.bool_)
    assert confusable(said, truth, ("rust", "dent")) == (("rust", "dent", 1 / 4),)


def test_imbalance__is_largest_by_smallest() -> None:
    assert imbalance({"a": 30, "b": 10}) == 3
    assert imbalance({}) is None
