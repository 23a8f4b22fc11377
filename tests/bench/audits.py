"""What the audits find of what was done to the data on purpose: flipped labels of digits and of the
built-in images, and near-duplicates planted among the built-in images; and how quickly they search."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageOps
from sklearn.datasets import load_digits

from tasks.audit import label_errors
from tasks.audit.duplicates import Duplicates, find
from tasks.audit.neighbours import alike
from tasks.audit.rows import Rows, Vectors
from tasks.audit.thumbnails import thumbnails
from tasks.embedding import embed
from tasks.embedding.extract import Sample
from tasks.embedding.gather import gather
from tasks.head.training import Samples, train
from tasks.params import AuditParams, HeadParams
from tasks.records import Embeddings
from tasks.settings import Settings
from tests.bench import dataset, engine, harness, samples
from tests.bench.harness import Row

FLIPPED = 0.05  # of the labels
RECALL, PRECISION, FOUND = 0.8, 0.6, 0.95  # goals
PLANTED = 200  # built-in images, of each of which there are three more
BACKBONE = "timm:tf_efficientnet_lite0"
SEARCHED = 20_000  # thumbnails
HARD = "local defects and none are told apart in four of five images, clean labels or not"

Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]


def run() -> Iterator[Row]:
    digits = load_digits()
    yield from _flips("digits", digits.data.astype(np.float32), digits.target.astype(np.int64), "")
    with samples.scratch() as folder:
        planted = _plant(folder / "data", samples.packaged())
        some = engine.digested(sorted((folder / "data").rglob("*.jpg")))
        embeddings = _embedded(some, folder)
        yield from _near_duplicates(some, planted, embeddings, folder, "")
        original = [sample for sample in some if sample.file.parent.name != "planted"]
        names = sorted({sample.file.parent.name for sample in original})
        labels = np.array([names.index(sample.file.parent.name) for sample in original], dtype=np.int64)
        x = gather(embeddings, [sample.digest for sample in original])
        yield from _flips("built-in images", x, labels, HARD)
    with samples.scratch() as folder:
        fine = _textures(folder / "textures")
        planted = _plant(folder / "data", fine)
        some = engine.digested(sorted((folder / "data").rglob("*.*g")))
        yield from _near_duplicates(some, planted, _embedded(some, folder), folder, ", fine textures")
    yield _search()


def _flips(name: str, x: NDArray[np.float32], truth: Ints, limits: str) -> Iterator[Row]:
    """5 % of the labels are changed to another class; the head is cross-validated on what results."""
    rng, c = np.random.default_rng(0), int(truth.max()) + 1
    flipped = np.zeros(len(truth), dtype=np.bool_)
    flipped[rng.choice(len(truth), round(FLIPPED * len(truth)), replace=False)] = True
    labels = np.where(flipped, (truth + rng.integers(1, c, len(truth))) % c, truth).astype(np.int64)
    classes = tuple(str(number) for number in range(c))
    told = label_errors.of_classes(_held_out(x, labels, classes), labels, classes)
    right = int(flipped[told.rows].sum())
    note = f"{int(flipped.sum())} of {len(truth):,} flipped, {len(told.rows)} flagged"
    yield _share(f"{name}: flipped labels that are flagged", right / int(flipped.sum()), RECALL, note, limits)
    yield _share(
        f"{name}: flagged labels that are flipped", right / max(1, len(told.rows)), PRECISION, note, limits
    )


def _held_out(x: NDArray[np.float32], labels: Ints, classes: tuple[str, ...]) -> Doubles:
    given = Samples(x=x, y=labels, parts=(x.shape[1],), groups=None)
    trained = train(given, target="class", classes=classes, params=HeadParams())
    return trained.held_out


def _textures(folder: Path) -> list[Path]:
    """Images of noise of one pixel, which averages out in thumbnails."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    files = [folder / f"{number:04d}.png" for number in range(PLANTED)]
    for file in files:
        noise = np.clip(rng.normal(128, 25, (256, 256)), 0, 255).astype(np.uint8)
        Image.fromarray(noise).convert("RGB").save(file)
    return files


def _plant(data: Path, every: Sequence[Path]) -> set[frozenset[str]]:
    """Copies the images and adds three of each of some; the pairs of paths that are alike."""
    for file in every:
        (data / file.parent.name).mkdir(parents=True, exist_ok=True)
        (data / file.parent.name / file.name).write_bytes(file.read_bytes())
    (data / "planted").mkdir()
    pairs: set[frozenset[str]] = set()
    for at in np.random.default_rng(0).choice(len(every), PLANTED, replace=False).tolist():
        family = [f"{every[at].parent.name}/{every[at].name}"]
        with Image.open(every[at]) as opened:
            image = opened.convert("RGB")
        smaller = image.resize((image.width * 3 // 5, image.height * 3 // 5), Image.Resampling.BICUBIC)
        for how, made in (("encoded", image), ("resized", smaller), ("mirrored", ImageOps.mirror(image))):
            family.append(f"planted/{at:04d}-{how}.jpg")
            made.save(data / family[-1], "JPEG", quality=40 if how == "encoded" else 90)
        pairs |= {frozenset({family[0], copy}) for copy in family[1:]}
        pairs |= {frozenset({a, b}) for a in family[1:] for b in family[1:] if a < b}
    return pairs


def _embedded(some: list[Sample], folder: Path) -> Embeddings:
    manifest = dataset.manifest(some, folder / "data", folder / "manifest")
    settings = Settings(state=folder / "state")
    embedder = engine.embedder(BACKBONE)
    return embed.run(manifest, folder / "data", embedder, settings, engine.MAX_PIXELS)


def _near_duplicates(
    some: list[Sample], planted: set[frozenset[str]], embeddings: Embeddings, folder: Path, of: str
) -> Iterator[Row]:
    rows = _rows(some, folder / "data")
    params = AuditParams()
    paths = rows.text("path")
    files = {digest: paths[row] for digest, row in zip(rows.contents, rows.first_row, strict=True)}

    def look(digests: Sequence[str], share: float, height: float) -> NDArray[np.uint8]:
        some = {digest: files[digest] for digest in digests}
        return thumbnails(folder / "data", some, folder / "thumbnails", share, height)

    found = find(rows, Vectors(embeddings), look, params)
    told = _pairs(rows, found)
    for how in ("encoded", "resized", "mirrored"):
        of_kind = {pair for pair in planted if _is_copy(pair, how)}
        share = len(of_kind & told) / len(of_kind)
        note = f"{len(of_kind)} planted among {len(some):,} images"
        yield _share(f"near-duplicates found, {how}{of}", share, FOUND, note, "")
    share = len(planted & told) / len(told)
    note = f"{len(told - planted)} of {len(told):,} pairs are false"
    yield _share(f"near-duplicates that are real{of}", share, None, note, "")


def _rows(some: list[Sample], data: Path) -> Rows:
    frame = pd.DataFrame(
        {
            "digest": [sample.digest for sample in some],
            "path": [str(sample.file.relative_to(data)) for sample in some],
            "label": "any",
            "split": "train",
            "group": "",
        }
    )
    return Rows("class", ("any",), frame)


def _pairs(rows: Rows, found: Duplicates) -> set[frozenset[str]]:
    paths = np.array(rows.text("path"), dtype=object)[rows.first_row]
    pairs = zip(paths[found.pairs.first], paths[found.pairs.second], strict=True)
    return {frozenset(pair) for pair in pairs}


def _is_copy(pair: frozenset[str], how: str) -> bool:
    """Whether it is of an original and its copy of one kind."""
    copies = [path for path in pair if path.startswith("planted/")]
    return len(copies) == 1 and copies[0].endswith(f"-{how}.jpg")


def _search() -> Row:
    """The search among thumbnails that have nothing in common, the usual case."""
    made = np.random.default_rng(0).integers(0, 256, (SEARCHED, 16, 16), dtype=np.uint8)

    def search() -> None:
        assert not len(alike(made, AuditParams().pixels).first)

    seconds = harness.interleaved({"ours": search}, rounds=3)["ours"]
    return harness.rate(
        "search for near-duplicates",
        seconds,
        SEARCHED * (SEARCHED - 1) / 2 / 1e6,
        "million pairs/s",
        note=f"{SEARCHED:,} thumbnails, all pairs, mirrored too",
    )


def _share(name: str, value: float, goal: float | None, note: str, limits: str) -> Row:
    """A share in %, against the least that is wanted."""
    return Row(
        name,
        100 * value,
        None if goal is None else 100 * goal,
        None if goal is None else value / goal,
        "%",
        goal=None if goal is None else 1.0,
        note=note,
        limits=limits,
    )
