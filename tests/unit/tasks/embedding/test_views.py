import pytest

from tasks.embedding.views import all_disturbances, disturbed_view, divided


@pytest.mark.parametrize(
    ("view", "parts"),
    [
        ("identity", ("identity", None)),
        ("crop-3", ("crop-3", None)),
        ("noise-2", ("identity", "noise-2")),
        ("hflip+jpeg-3", ("hflip", "jpeg-3")),
        ("crop-3+blur-1", ("crop-3", "blur-1")),
    ],
)
def test_divided__is_the_view_and_its_disturbance(view: str, parts: tuple[str, str | None]) -> None:
    assert divided(view) == parts
    if parts[1] is not None:
        assert disturbed_view(parts[0], parts[1]) == view


def test_all_disturbances__are_five_at_three_strengths() -> None:
    names = all_disturbances()
    assert names[:4] == ("noise-1", "noise-2", "noise-3", "blur-1")
    assert len(names) == len(set(names)) == 15
