from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, logit

from tasks.data.image import decode
from tasks.embedding.decode import from_image
from tasks.embedding.forward import Forward, TorchForward, features_of
from tasks.errors import FinetuneError
from tasks.finetune.answers import Answers
from tasks.finetune.batches import Batches
from tasks.finetune.images import Images
from tasks.finetune.teacher import Teacher, averaged, single
from tasks.finetune.views import Views, resized
from tasks.params.finetune import Augmentation
from tasks.records import Backbone
from tests.unit.tasks.finetune.taught import CLASSES, images, packaged

ALL: tuple[Augmentation, ...] = ("hflip", "crop", "colour")


def answers(teacher: Teacher, folder: Path, views: int = 1, augment: Any = (), **changed: Any) -> Answers:
    samples = changed.pop("samples", None) or images(folder / "images")
    values: dict[str, Any] = {"seed": 0, "features": False, "max_pixels": 10_000, "state": folder, **changed}
    return teacher.answers(samples, augment, views=views, **values)


def of_all(found: Answers, view: int = 0) -> np.ndarray[Any, Any]:
    rows = torch.arange(len(found))
    return np.asarray(found.outputs(rows, torch.full_like(rows, view)).double())


@pytest.mark.parametrize(
    "params", [{}, {"views": ["identity", "hflip"]}, {"others": [{"backbone": "regraft:pixels"}]}]
)
def test_teacher__says_of_a_plain_view_what_its_package_answers(
    tmp_path: Path, params: dict[str, Any]
) -> None:
    one = packaged(tmp_path, **params)
    samples = images(tmp_path / "images")
    expected = one.outputs([sample.file.read_bytes() for sample in samples])
    found = of_all(answers(Teacher([one], CLASSES, "class"), tmp_path))
    np.testing.assert_allclose(found, np.log(expected), atol=1e-4)


@pytest.mark.parametrize(("target", "classes"), [("labels", CLASSES), ("number", ())])
def test_teacher__of_labels_and_numbers(tmp_path: Path, target: Any, classes: tuple[str, ...]) -> None:
    one = packaged(tmp_path, target, classes)
    expected = one.outputs([sample.file.read_bytes() for sample in images(tmp_path / "images")])
    found = of_all(answers(Teacher([one], classes, target), tmp_path))
    np.testing.assert_allclose(
        found, logit(expected) if target == "labels" else expected, rtol=1e-3, atol=1e-3
    )


def test_teacher__sees_the_view_of_the_student(tmp_path: Path) -> None:
    one = packaged(tmp_path)
    samples = images(tmp_path / "images")
    how = one.embedder.backbones[0].preprocess
    found = answers(Teacher([one], CLASSES, "class"), tmp_path, 3, ALL, samples=samples, features=True)
    held = Images(samples, how, 10_000, 10**9)
    views = Views(ALL, how, 0)
    batches = Batches(
        held,
        [s.digest for s in samples],
        torch.zeros(5, 3),
        torch.ones(5),
        views,
        batch=2,
        seed=0,
        cached_views=3,
    )
    network = features_of(one.embedder.backbones[0])
    seen = set()
    for epoch in range(4):
        for batch in batches.epoch(epoch):
            with torch.inference_mode():
                embedded = network(batch.x)[0].numpy()
            expected = np.log(one.head.outputs(embedded))
            np.testing.assert_allclose(found.outputs(batch.rows, batch.views), expected, atol=1e-4)
            seen |= set(zip(batch.rows.tolist(), batch.views.tolist(), strict=True))
    assert len(seen) == 5 * 3
    assert np.abs(of_all(found, 0) - of_all(found, 1)).max() > 1e-3


def test_teacher__cuts_its_own_input_from_the_same_image(tmp_path: Path) -> None:
    one = packaged(tmp_path, image_size=48)  # of a student of 32 px
    samples = images(tmp_path / "images")
    backbone = one.embedder.backbones[0]
    found = answers(Teacher([one], CLASSES, "class"), tmp_path, 2, ("hflip",), samples=samples)
    image = resized(from_image(decode(samples[0].file.read_bytes(), 10_000)), backbone.preprocess)
    crop = Views(("hflip",), backbone.preprocess, 0)(image, samples[0].digest, 1)
    assert crop.shape == (3, 48, 48)
    with torch.inference_mode():
        expected = np.log(one.head.outputs(features_of(backbone)(crop[None])[0].numpy()))
    np.testing.assert_allclose(of_all(found, 1)[:1], expected, atol=1e-4)


def test_teacher__several_are_averaged_in_the_order_of_the_students_classes(tmp_path: Path) -> None:
    first = packaged(tmp_path / "a")
    second = packaged(
        tmp_path / "b", classes=("fox", "owl", "cat", "dog"), backbone="timm:test_resnet", seed=1
    )
    contents = [sample.file.read_bytes() for sample in images(tmp_path / "images")]
    theirs = second.outputs(contents)[:, [2, 3, 0]]
    expected = (first.outputs(contents) + theirs / theirs.sum(axis=1, keepdims=True)) / 2
    both = Teacher([first, second], CLASSES, "class")
    assert both.features == first.embedder.dim + second.embedder.dim
    np.testing.assert_allclose(of_all(answers(both, tmp_path)), np.log(expected), atol=1e-4)


def test_averaged__labels_have_the_logit_of_the_mean_probability() -> None:
    logits = np.array([[[2.0, -1.0, 800.0]], [[0.0, -3.0, 900.0]]])  # [T, N, K]
    found = averaged(logits, "labels")
    np.testing.assert_allclose(found[:, :2], logit(expit(logits[..., :2]).mean(axis=0)))
    assert 800 < found[0, 2] < 801  # log 2 above, where float64's probability is exactly 1
    np.testing.assert_allclose(averaged(logits[:1], "labels"), logits[0])


def test_averaged__class_that_is_ruled_out_has_a_finite_logarithm() -> None:
    found = averaged(np.array([[[0.0, -1e6]]]), "class")
    assert found.tolist() == [[0.0, -50.0]]


def test_averaged__numbers() -> None:
    assert averaged(np.array([[[1.0]], [[4.0]]]), "number").tolist() == [[2.5]]


class Counted:
    """A route that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, backbone: Backbone) -> Forward:
        plain, counted = TorchForward(backbone), self

        class Route:
            batch = plain.batch

            def __call__(self, crops: torch.Tensor) -> list[Any]:
                counted.calls += 1
                return plain(crops)

        return Route()


def test_teacher__is_asked_once_whatever_the_order(tmp_path: Path) -> None:
    teacher = Teacher([packaged(tmp_path)], CLASSES, "class")
    samples = images(tmp_path / "images")
    first, second = Counted(), Counted()
    found = of_all(answers(teacher, tmp_path, samples=samples, route=first))
    again = of_all(answers(teacher, tmp_path, samples=[*samples[::-1], samples[0]], route=second))
    assert first.calls > 0
    assert second.calls == 0
    assert np.array_equal(again, [*found[::-1], found[0]])


@pytest.mark.parametrize("changed", [{"seed": 1}, {"augment": ("hflip",)}, {"views": 2}, {"features": True}])
def test_teacher__is_asked_anew_about_other_views(tmp_path: Path, changed: dict[str, Any]) -> None:
    teacher = Teacher([packaged(tmp_path)], CLASSES, "class")
    route = Counted()
    answers(teacher, tmp_path)
    answers(teacher, tmp_path, **changed, route=route)
    assert route.calls > 0


def test_teacher__that_lacks_a_class_is_refused(tmp_path: Path) -> None:
    one = packaged(tmp_path)
    with pytest.raises(
        FinetuneError, match=r"distill\.teachers: package \w{12} does not know owl; a student"
    ):
        Teacher([one], (*CLASSES, "owl"), "class")


def test_teacher__of_another_target_is_refused(tmp_path: Path) -> None:
    one = packaged(tmp_path)
    with pytest.raises(FinetuneError, match="answers with a class, the data has a labels"):
        Teacher([one], CLASSES, "labels")
    with pytest.raises(FinetuneError, match="names no package"):
        Teacher([], CLASSES, "class")


def test_teacher__mixed_images_are_refused(tmp_path: Path) -> None:
    teacher = Teacher([packaged(tmp_path)], CLASSES, "class")
    with pytest.raises(FinetuneError, match=r"finetune\.augment: cutmix makes images that no teacher"):
        answers(teacher, tmp_path, augment=("hflip", "cutmix"))
    assert single(("hflip", "cutmix", "colour", "mixup")) == ("hflip", "colour")


def test_teacher__threads_are_as_they_were(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    answers(Teacher([packaged(tmp_path)], CLASSES, "class"), tmp_path)
    assert torch.get_num_threads() == before
