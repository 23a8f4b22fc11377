"""Extraction end to end, from files on disk to durable segments: against what its parts allow, and
against the loop that most code has."""

from collections.abc import Iterator

from tests.bench import engine, harness, samples, usual
from tests.bench.harness import Row

SMALL = ("timm:tf_efficientnet_lite0", "torchvision:mobilenet_v3_large")
LARGE = "torchvision:resnet50"
TRIED = 128  # images that the usual loop's settings are chosen with
LIMITS = (
    "what neither part counts: hashing each file, Python between the batches, the writing of the"
    " segment, and two threads that share the memory's bandwidth with more than themselves"
)


def run() -> Iterator[Row]:
    for name in SMALL:
        yield from _small(name, 512)
    yield _large(96)


def _small(name: str, count: int) -> Iterator[Row]:
    files = samples.jpegs(count)
    backbone = engine.backbone(name)
    how = backbone.preprocess
    forward = engine.route(backbone)
    settings, loop = usual.best_loop(backbone, files, TRIED)
    with samples.scratch() as root:
        seconds = harness.interleaved(
            {
                "ours": engine.extraction(engine.digested(files), backbone, forward, root),
                "forward": engine.forward_loop(forward, how.size, count),
                "decode": engine.decode_loop(files, how, forward.batch),
                "usual": loop,
            }
        )
    # The same images through both parts: 1 / (1/F + 1/D) images a second.
    parts = [f + d for f, d in zip(seconds["forward"], seconds["decode"], strict=True)]
    label = name.partition(":")[2]
    about = f"{count} JPEGs of {samples.WIDTH} × {samples.HEIGHT} px to {how.size} px, fp32"
    route = f"{type(forward).__name__} in batches of {forward.batch}"
    yield harness.row(
        f"extraction, {label}, against its parts",
        seconds["ours"],
        parts,
        unit="images/s",
        work=count,
        goal=0.90,
        note=f"{about}, {route}; against 1/(1/F + 1/D)",
        limits=LIMITS,
    )
    yield harness.row(
        f"extraction, {label}, against the usual loop",
        seconds["ours"],
        seconds["usual"],
        unit="images/s",
        work=count,
        goal=1.7,
        note=f"{about}, {route}; against PIL, v1 transforms, DataLoader, torch eager NCHW with {settings}"
        f" (the best of {usual.WORKERS} workers, batches {usual.BATCHES})",
        limits="the eager forward pass is not slower by that much on this machine",
    )


def _large(count: int) -> Row:
    files = samples.jpegs(count)
    backbone = engine.backbone(LARGE)
    forward = engine.route(backbone)
    with samples.scratch() as root:
        seconds = harness.interleaved(
            {
                "ours": engine.extraction(engine.digested(files), backbone, forward, root),
                "forward": engine.forward_loop(forward, backbone.preprocess.size, count),
            }
        )
    return harness.row(
        f"extraction, {LARGE.partition(':')[2]}, against its forward pass",
        seconds["ours"],
        seconds["forward"],
        unit="images/s",
        work=count,
        goal=0.95,
        note=f"{count} JPEGs of {samples.WIDTH} × {samples.HEIGHT} px, fp32, {type(forward).__name__};"
        " against the same forward pass over ready crops",
        limits=LIMITS,
    )
