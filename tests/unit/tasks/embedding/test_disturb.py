from collections.abc import Callable

import pytest
import torch

from tasks.embedding import source, views
from tasks.embedding.decode import pixels
from tasks.embedding.disturb import blocks_of, disturbed
from tasks.embedding.disturbance import disturb
from tasks.embedding.extract import Extractor, Sample
from tasks.embedding.forward import TorchForward
from tasks.embedding.preprocess import crop
from tasks.embedding.source import embedder_of, fingerprint
from tasks.embedding.views import all_disturbances, divided
from tasks.records import Backbone, Block, Embedder, Embeddings, Preprocess


def backbone(*names: str, weights: str = "w") -> Backbone:
    """A backbone with a block for each view."""
    how = Preprocess(
        resize=256, size=224, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
    )
    blocks = [
        Block(digest="", layer="blocks.4", pooling=("mean", "max"), view=v, parts=(8, 8)) for v in names
    ]
    return Backbone(
        digest="",
        name="timm:x",
        weights=weights,
        weights_digest=weights * 64,
        library="timm 1.0",
        preprocess=how,
        precision="float32",
        blocks=tuple(blocks),
    )


@pytest.fixture
def embedder() -> Embedder:
    return embedder_of([backbone("identity", "hflip"), backbone("crop-0", weights="v")])


def test_fingerprint__of_a_view_stays_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    # Computed by the code of before there were disturbances: a cache that is there stays good.
    monkeypatch.setattr(source, "decoding", lambda: ("embedding 2", "decoder 1", "pillow 13", "torch 2.15"))
    plain = backbone("crop-7").model_copy(update={"weights_digest": "d" * 64})
    expected = "72f2e3b84702f1858f8a3cdfffeb9a39e99b479c938ac031bdaacf78d009f30a"
    assert fingerprint(plain, plain.blocks[0]) == expected


def test_fingerprint__of_a_disturbed_view_alone_changes_with_the_disturbances(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = backbone("hflip", "hflip+noise-1", "noise-1")
    before = [fingerprint(one, block) for block in one.blocks]
    monkeypatch.setattr(views, "VERSION", 1000)
    after = [fingerprint(one, block) for block in one.blocks]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, False]


def test_disturbed__has_each_block_and_its_disturbed_ones(embedder: Embedder) -> None:
    made = disturbed(embedder)
    first, second = made.backbones
    assert [block.view for block in second.blocks] == ["crop-0", *(f"crop-0+{d}" for d in all_disturbances())]
    assert [block.view for block in first.blocks][:4] == ["identity", "hflip", "noise-1", "hflip+noise-1"]
    assert len({block.digest for block in made.blocks}) == 3 * 16
    assert {block.digest for block in embedder.blocks} < {block.digest for block in made.blocks}


def test_blocks_of__one_disturbance_are_laid_out_as_the_embedders(embedder: Embedder) -> None:
    made = Embeddings(digest="e", root="", blocks=disturbed(embedder).blocks, computed=0, cached=0)
    assert blocks_of(made, None).blocks == embedder.blocks
    views_of = [block.view for block in blocks_of(made, "jpeg-2").blocks]
    assert views_of == ["jpeg-2", "hflip+jpeg-2", "crop-0+jpeg-2"]
    assert blocks_of(made, "jpeg-2").digest != blocks_of(made, "jpeg-1").digest


# Through the extractor


def test_extractor__disturbed_views_are_the_plain_ones_disturbed(
    resolved: Callable[..., Embedder], photos: list[Sample]
) -> None:
    (made,) = disturbed(resolved(views=["hflip", "crop-0"])).backbones
    extractor = Extractor(made, made.blocks, TorchForward(made))
    images = [pixels(sample.file.read_bytes(), 10**7) for sample in photos[:2]]
    names = [sample.digest for sample in photos[:2]]
    found = dict(zip([block.view for block in made.blocks], extractor.crops(images, names), strict=True))
    assert len(found) == 2 * 16
    for view, of_two in found.items():
        shown = divided(view)[0]
        for image, name, one in zip(images, names, of_two, strict=True):
            expected = disturb(crop(image, made.preprocess, shown, name)[None], view, [name])[0]
            assert torch.equal(one, expected)


def test_extractor__grey_image_is_disturbed_alike_in_a_stack_and_alone(
    resolved: Callable[..., Embedder],
) -> None:
    (made,) = disturbed(resolved()).backbones
    extractor = Extractor(made, made.blocks, TorchForward(made))
    grey = torch.randint(256, (3, 1, 80, 70), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    names = [str(number) * 64 for number in range(3)]
    for stacked, alone in zip(extractor.crops(grey, names), extractor.crops(list(grey), names), strict=True):
        assert torch.equal(stacked, alone)
