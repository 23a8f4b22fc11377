"""Decoding and resizing on one thread, against PIL and torchvision's v1 transforms."""

from collections.abc import Iterator
from importlib import import_module
from io import BytesIO
from typing import Literal

import torch
from PIL import Image

from tasks.records import Preprocess
from tests.bench import engine, harness, samples, usual
from tests.bench.harness import Row

COUNT = 256
LIMITS = "libjpeg's decoding, which both sides run, is most of ours"


def run() -> Iterator[Row]:
    yield _figure("bilinear")
    yield _figure("bicubic")


def _figure(interpolation: Literal["bilinear", "bicubic"]) -> Row:
    contents = [file.read_bytes() for file in samples.jpegs(COUNT)]
    how = Preprocess(
        resize=256, size=224, interpolation=interpolation, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    v1 = import_module("torchvision.transforms").Compose(usual.resize_and_crop(how))

    def ours() -> None:
        for at in range(0, COUNT, 4):
            engine.decode_some(contents[at : at + 4], how)

    def pil() -> None:
        for content in contents:
            v1(Image.open(BytesIO(content)).convert("RGB"))

    torch.set_num_threads(1)
    seconds = harness.interleaved({"ours": ours, "pil": pil}, rounds=7)
    return harness.row(
        f"decode and resize, {interpolation}",
        seconds["ours"],
        seconds["pil"],
        unit="images/s",
        work=COUNT,
        goal=2.4,
        note=f"one thread, JPEGs of {samples.WIDTH} × {samples.HEIGHT} px from memory to 224 px: ours to"
        " uint8, which the network standardises; against PIL with v1's Resize, CenterCrop and ToTensor",
        limits=LIMITS,
    )
