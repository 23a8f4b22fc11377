import pytest

from tasks.finetune.student import student_params
from tasks.params import Params


@pytest.mark.parametrize(("epochs", "soup"), [(20, 5), (3, 3), (1, 0)])
def test_student_params__soup_is_of_no_more_epochs_than_the_student_has(epochs: int, soup: int) -> None:
    params = Params.model_validate(
        {"finetune": {"soup": 5}, "distill": {"student": "timm:x", "epochs": epochs}}
    )
    found = student_params(params)
    assert (found.method, found.epochs, found.soup) == ("full", epochs, soup)


def test_student_params__are_its_own_where_the_rungs_would_not_do() -> None:
    finetune = {"method": "last_blocks", "cached_views": 2, "augment": ["hflip"], "label_smoothing": 0.1}
    params = Params.model_validate({"finetune": finetune, "distill": {"student": "timm:x"}})
    found = student_params(params)
    assert (found.cached_views, found.label_smoothing, found.augment) == (0, 0.0, ("hflip",))
    mixed = Params.model_validate({"finetune": {"augment": ["hflip", "mixup"]}})
    assert student_params(mixed).augment == ("hflip",)
