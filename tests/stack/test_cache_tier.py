"""The shared tier of the embedding cache on a real S3 server, and through a proxy that fails."""

import hashlib
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import numpy as np
import pyarrow.parquet as pq
import pytest

from tasks import s3
from tasks.embedding.cache import DESCRIPTION, EmbeddingCache
from tasks.embedding.compact import compact
from tasks.embedding.maintain import export, list_spaces, prune
from tasks.embedding.tier import Tier
from tasks.errors import CacheError
from tasks.settings import Settings
from tests.stack.faulty_proxy import Fault, FaultyProxy

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

    from tests.stack.conftest import S3Server

DIM = 3
ONE = "1" * 64  # a fingerprint


def digest(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def digests(numbers: Sequence[int]) -> list[str]:
    return [digest(n) for n in numbers]


def fill(cache: EmbeddingCache, numbers: Sequence[int]) -> None:
    """Writes a segment in which a sample's vector is its number."""
    cache.append(digests(numbers), np.array([[n] * cache.dim for n in numbers], dtype=np.float32))


def check(cache: EmbeddingCache, numbers: Sequence[int]) -> None:
    assert cache.missing(digests(numbers)) == []
    np.testing.assert_array_equal(cache.gather(digests(numbers))[:, 0], numbers)


class Place:
    """A prefix in a bucket, seen through the proxy, and workers with disks of their own."""

    def __init__(self, server: "S3Client", proxy: FaultyProxy, bucket: str, folder: Path) -> None:
        self.server, self.proxy, self.bucket, self.folder = server, proxy, bucket, folder
        self.url = f"s3://{bucket}/a/cache"
        self.settings = Settings(state=folder, s3_endpoint_url=proxy.url, cache_url=self.url)

    @cached_property
    def made(self) -> Tier:
        return Tier(self.url, self.settings)  # most of the time of opening a cache is boto3's

    def tier(self) -> Tier:
        return self.made

    def worker(self, name: str, dim: int = DIM) -> EmbeddingCache:
        return EmbeddingCache(self.folder / name, ONE, dim, self.tier())

    def objects(self) -> dict[str, bytes]:
        listed = self.server.list_objects_v2(Bucket=self.bucket, Prefix=f"a/cache/{ONE}/").get("Contents", [])
        return {
            item["Key"].rpartition("/")[2]: self.server.get_object(Bucket=self.bucket, Key=item["Key"])[
                "Body"
            ].read()
            for item in listed
        }

    def put(self, name: str, content: bytes) -> None:
        self.server.put_object(Bucket=self.bucket, Key=f"a/cache/{ONE}/{name}", Body=content)


@pytest.fixture
def place(s3_server: "S3Server", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # retries needn't wait
    server = boto3.client("s3", endpoint_url=s3_server.url)
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    server.create_bucket(Bucket=bucket)
    with FaultyProxy(s3_server.url).running() as proxy:
        yield Place(server, proxy, bucket, tmp_path)


def now_and_then(fault: Fault, every: int = 3) -> Callable[[str, str], Fault]:
    """Every so manieth request fails, the first among them."""
    count = iter(range(1_000_000))
    return lambda method, name: fault if next(count) % every == 0 else None


def test_tier__fresh_worker_fetches_only_the_segments_it_needs(place: Place) -> None:
    writer = place.worker("writer")
    for start in range(0, 40, 10):
        fill(writer, range(start, start + 10))
    assert sorted({Path(name).suffix for name in place.objects()}) == [".arrow", ".keys"]

    place.proxy.requests.clear()
    fresh = place.worker("fresh")
    assert fresh.missing(digests([3, 25, 99])) == [digest(99)]
    assert place.proxy.asked("GET", ".keys") == 4
    assert place.proxy.asked("GET", ".arrow") == 0
    fresh.fetch(digests([3, 4, 25]))
    assert place.proxy.asked("GET", ".arrow") == 2
    assert len(list(fresh.segments())) == 2
    check(fresh, [25, 3, 4])
    assert place.proxy.asked("GET", ".arrow") == 2

    place.proxy.requests.clear()  # the keys stay on the disk
    again = place.worker("fresh")
    check(again, [25, 3, 33])  # gather fetches too
    assert (place.proxy.asked("GET", ".keys"), place.proxy.asked("GET", ".arrow")) == (0, 1)
    assert place.proxy.asked("PUT", "") == 0


def test_tier__two_workers_share_what_each_computes(place: Place) -> None:
    one, two = place.worker(ONE), place.worker("two")
    fill(one, range(10))
    fill(two, range(5, 15))  # it has not looked again
    fill(two, range(10))  # the very segment that the other has written
    two.refresh()
    check(two, range(15))
    one.refresh()
    check(one, range(15))
    assert len(place.objects()) == 4


@pytest.mark.parametrize("status", [500, 503])
def test_tier__server_that_fails_now_and_then_is_asked_again(place: Place, status: int) -> None:
    place.proxy.fault = now_and_then(status)
    writer = place.worker("writer")
    for start in range(0, 9, 3):
        fill(writer, range(start, start + 3))
    check(place.worker("reader"), range(9))
    assert len(place.objects()) == 6


def test_tier__server_that_is_slow_is_waited_for(place: Place) -> None:
    place.proxy.fault = lambda method, name: "slow"
    fill(place.worker("writer"), range(9))
    check(place.worker("reader"), range(9))


def test_tier__server_that_answers_nothing_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_READ_S", 0.05)
    monkeypatch.setattr(s3, "ATTEMPTS", 2)
    place.proxy.fault = lambda method, name: "slow"
    with pytest.raises(CacheError, match=f"^{place.url}/{ONE}: the S3 server gave no answer for 0.05 s$"):
        place.worker("writer")


@pytest.mark.parametrize("fault", [503, "cut"])
def test_tier__that_fails_for_good_leaves_the_rows_here_and_the_next_run_uploads_them(
    place: Place, fault: Fault
) -> None:
    writer = place.worker("writer")
    place.proxy.fault = lambda method, name: fault if method == "PUT" else None
    with pytest.raises(CacheError) as failed:
        fill(writer, range(10))
    reason = (
        "the S3 server answered 503" if fault == 503 else "the S3 server broke off in the middle, 5 times"
    )
    assert str(failed.value) == (
        f"{place.url}/{ONE}: {reason}; the embeddings are safe in {writer.folder}: once the tier can be"
        " written to, run again, and they are uploaded"
    )
    check(EmbeddingCache(place.folder / "writer", ONE, DIM), range(10))
    assert place.objects() == {}
    place.proxy.fault = lambda method, name: None
    place.worker("writer")
    check(place.worker("reader"), range(10))


def test_tier__that_fails_once_gets_the_rows_with_the_next_segment(place: Place) -> None:
    writer = place.worker("writer")
    place.proxy.fault = lambda method, name: 503 if name.endswith(".keys") else None
    with pytest.raises(CacheError, match="are safe in"):
        fill(writer, range(10))
    assert [Path(name).suffix for name in place.objects()] == [".arrow"]
    assert place.worker("reader").missing(digests([1])) == [digest(1)]  # half a segment is none
    place.proxy.fault = lambda method, name: None
    fill(writer, range(10, 20))
    check(place.worker("reader"), range(20))


@pytest.mark.parametrize("suffix", [".keys", ".arrow"])
def test_tier__download_that_is_cut_off_is_tried_again(place: Place, suffix: str) -> None:
    fill(place.worker("writer"), range(50))
    cuts: Iterator[Fault] = iter(["cut", "cut", None])
    place.proxy.fault = lambda method, name: next(cuts, None) if name.endswith(suffix) else None
    check(place.worker("reader"), range(50))
    assert place.proxy.asked("GET", suffix) == 3


def test_tier__download_that_is_always_cut_off_leaves_nothing_half_written(place: Place) -> None:
    fill(place.worker("writer"), range(50))
    reader = place.worker("reader")
    assert reader.missing(digests(range(50))) == []
    place.proxy.fault = lambda method, name: "cut" if name.endswith(".arrow") else None
    with pytest.raises(
        CacheError, match=f"^{place.url}/{ONE}: the S3 server broke off in the middle, 5 times$"
    ):
        reader.fetch(digests(range(50)))
    assert [file for file in reader.folder.iterdir() if file.is_file()] == []
    place.proxy.fault = lambda method, name: None
    check(reader, range(50))


def test_tier__upload_that_is_cut_off_is_tried_again(place: Place) -> None:
    cuts: Iterator[Fault] = iter(["cut", "cut", None, "cut"])
    place.proxy.fault = lambda method, name: next(cuts, None) if method == "PUT" else None
    fill(place.worker("writer"), range(50))
    check(place.worker("reader"), range(50))


def test_tier__large_segment_travels_in_parts(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_PART_BYTES", 5 << 20)  # the least that S3 takes
    dim, rows = 1_280, 2_400  # 12.3 MB: three parts
    place.proxy.fault = now_and_then("cut", every=5)
    writer = place.worker("writer", dim)
    fill(writer, range(rows))
    (name,) = (file.name for file in writer.segments())
    assert place.proxy.asked("PUT", name) >= 3
    assert place.objects()[name] == (writer.folder / name).read_bytes()
    reader = place.worker("reader", dim)
    check(reader, range(rows))
    assert place.proxy.asked("GET", name) >= 3
    fill(place.worker("again", dim), range(rows))  # it is there already
    assert place.server.list_multipart_uploads(Bucket=place.bucket).get("Uploads", []) == []


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [(".keys", "flipped"), (".keys", "emptied"), (".arrow", "flipped"), (".arrow", "truncated")],
)
def test_tier__damaged_object_is_set_aside_and_its_owner_uploads_it_again(
    place: Place, suffix: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    writer = place.worker("writer")
    fill(writer, range(10))
    fill(writer, range(10, 20))
    name = next(name for name, content in place.objects().items() if name.endswith(suffix))
    content = bytearray(place.objects()[name])
    if damage == "flipped":
        content[-(len(content) // 4)] ^= 1
    else:
        del content[0 if damage == "emptied" else 200 :]
    place.put(name, bytes(content))

    reader = place.worker("reader")
    reader.fetch(digests(range(20)))
    with caplog.at_level(logging.WARNING):
        assert len(reader.missing(digests(range(20)))) == 10
    assert re.search(rf"{place.url}/{ONE}/\w+\{suffix}: damaged .*, set aside", caplog.text)
    assert place.objects()[f"{name}.damaged"] == bytes(content)
    assert name not in place.objects()
    place.worker("writer")
    check(place.worker("reader"), range(20))


@pytest.mark.parametrize("suffix", [".keys", ".arrow"])
def test_tier__samples_of_a_damaged_object_can_be_embedded_again_by_who_found_it(
    place: Place, suffix: str
) -> None:
    writer = place.worker("writer")
    fill(writer, range(10))
    (name,) = (name for name in place.objects() if name.endswith(suffix))
    content = bytearray(place.objects()[name])
    content[-(len(content) // 4)] ^= 1
    fill(writer, range(8, 20))  # so that two samples are in an intact segment too
    place.put(name, bytes(content))

    run = place.worker("run")
    run.fetch(digests(range(20)))
    assert run.missing(digests(range(20))) == digests(range(8))
    check(run, range(8, 20))
    fill(run, range(10))  # under the name of the damaged one
    check(run, range(20))
    check(place.worker("reader"), range(20))


def test_tier__local_damage_is_mended_from_the_tier(place: Place) -> None:
    writer = place.worker("writer")
    fill(writer, range(10))
    (segment,) = writer.segments()
    content = bytearray(segment.read_bytes())
    content[content.index(np.full(DIM, 7, dtype=np.float32).tobytes())] ^= 1
    segment.write_bytes(content)
    check(place.worker("writer"), range(10))
    assert segment.with_suffix(".damaged").exists()
    assert segment.exists()


def test_tier__damaged_segment_is_not_uploaded(place: Place) -> None:
    local = EmbeddingCache(place.folder / "writer", ONE, DIM)
    fill(local, range(10))
    (segment,) = local.segments()
    content = bytearray(segment.read_bytes())
    content[content.index(np.full(DIM, 7, dtype=np.float32).tobytes())] ^= 1
    segment.write_bytes(content)
    assert len(place.worker("writer").missing(digests(range(10)))) == 10
    assert place.objects() == {}


def test_tier__compaction_runs_beside_a_reader_with_an_old_listing(place: Place) -> None:
    writer = place.worker("writer")
    for start in range(0, 30, 3):
        fill(writer, range(start, start + 3))
    reader = place.worker("reader")
    assert reader.missing(digests(range(30))) == []

    done = compact(place.folder / "compactor", ONE, place.tier())

    assert done.tier_before is not None
    assert done.tier_after is not None
    assert (done.tier_before.segments, done.tier_before.rows) == (10, 30)
    assert (done.tier_after.segments, done.tier_after.rows) == (1, 30)
    assert sorted(Path(name).suffix for name in place.objects()) == [".arrow", ".keys"]
    reader.fetch(digests(range(30)))
    check(reader, range(30))
    assert len(list(reader.segments())) == 1
    # The writer still has the old segments; the tier has their rows, and does not get them again.
    place.worker("writer")
    assert len(place.objects()) == 2
    assert compact(place.folder / "writer", ONE, place.tier()).after.segments == 1
    check(place.worker("writer"), range(30))
    check(place.worker("fresh"), range(30))


def test_tier__compaction_that_fails_in_the_middle_loses_nothing(place: Place) -> None:
    writer = place.worker("writer")
    for start in range(0, 30, 3):
        fill(writer, range(start, start + 3))
    whole = place.objects()
    for suffix, method in ((".arrow", "PUT"), (".keys", "PUT"), ("", "POST")):  # POST removes

        def fault(asked: str, name: str, suffix: str = suffix, method: str = method) -> Fault:
            return 503 if asked == method and name.endswith(suffix) else None

        place.proxy.fault = fault
        with pytest.raises(CacheError, match="the S3 server answered 503"):
            compact(place.folder / f"fails{suffix}{method}", ONE, place.tier())
        place.proxy.fault = lambda method, name: None
        assert whole.items() <= place.objects().items()
        check(place.worker(f"reader{suffix}{method}"), range(30))
    compact(place.folder / "done", ONE, place.tier())
    check(place.worker("reader"), range(30))


def test_tier__what_a_killed_process_left_is_cleaned_when_it_is_old(place: Place) -> None:
    fill(place.worker("writer"), range(10))
    whole = place.objects()
    place.put("0.arrow", b"a writer was killed")
    place.put("1.keys", b"a remover was killed")
    place.server.create_multipart_upload(Bucket=place.bucket, Key=f"a/cache/{ONE}/2.arrow")
    namespace = place.tier().namespace(ONE, place.folder)
    assert namespace.clean(3_600, 3_600) == 0
    assert namespace.clean(-1, 3_600) == 3
    assert place.objects() == whole
    place.put("0.arrow.damaged", b"set aside")
    assert namespace.clean(-1, 3_600) == 0
    assert namespace.clean(-1, -1) == 1
    assert place.objects() == whole


def test_tier__is_listed_and_pruned(place: Place) -> None:
    writer = place.worker("writer")
    fill(writer, range(10))
    fill(writer, range(10, 15))
    (writer.folder / DESCRIPTION).write_text("{}")
    place.worker("writer")
    root = place.folder / "writer"
    here, there = list_spaces(root, place.tier())
    assert (here.place, there.place) == ("here", "tier")
    assert (there.fingerprint, there.segments, there.rows, there.bytes) == (ONE, 2, 15, here.bytes)
    assert there.unused_days < 1

    nothing = prune(root, unused_days=1, tier=place.tier(), dry_run=False)
    assert (nothing.spaces, len(place.objects())) == ((), 5)
    would = prune(root, referenced=[], tier=place.tier())
    assert (would.segments, would.rows, would.bytes) == (4, 30, 2 * here.bytes)
    assert len(place.objects()) == 5
    prune(root, referenced=[], tier=place.tier(), dry_run=False)
    assert place.objects() == {}
    assert list_spaces(root, place.tier()) == []


def test_tier__at_the_top_of_a_bucket_lets_alone_what_is_not_the_caches(place: Place) -> None:
    foreign = [
        "datasets/a.arrow",
        "dvc/files/md5/00/aa",
        f"{'A' * 64}/a.arrow",
        f"{ONE}/README.md",
        f"{ONE}/deeper/a.arrow",
    ]
    for key in foreign:
        place.server.put_object(Bucket=place.bucket, Key=key, Body=b"not the cache's")
    upload = place.server.create_multipart_upload(Bucket=place.bucket, Key=f"{ONE}/upload.zip")
    tier = Tier(f"s3://{place.bucket}", place.settings)
    fill(EmbeddingCache(place.folder / "writer", ONE, DIM, tier), range(10))
    assert tier.fingerprints() == [ONE]
    pruned = prune(place.folder / "none", referenced=[], tier=tier, dry_run=False)
    assert [space.fingerprint for space in pruned.spaces] == [ONE]
    left = place.server.list_objects_v2(Bucket=place.bucket)["Contents"]
    assert sorted(item["Key"] for item in left) == sorted(foreign)
    uploads = place.server.list_multipart_uploads(Bucket=place.bucket)["Uploads"]
    assert [item["UploadId"] for item in uploads] == [upload["UploadId"]]
    assert list_spaces(place.folder / "none", tier) == []


@pytest.mark.parametrize("header_bytes", [64 << 10, 16])
def test_tier__is_listed_by_the_headers_of_its_keys(
    place: Place, monkeypatch: pytest.MonkeyPatch, header_bytes: int
) -> None:
    monkeypatch.setattr("tasks.embedding.tier._HEADER_BYTES", header_bytes)
    fill(place.worker("writer"), range(5_000))  # 80,000 bytes of keys
    asked: list[str | None] = []

    def note(params: dict[str, str], **_: object) -> None:
        if params["Key"].endswith(".keys"):
            asked.append(params.get("Range"))

    place.tier().client.meta.events.register("before-parameter-build.s3.GetObject", note)
    (there,) = list_spaces(place.folder / "none", place.tier())
    assert there.rows == 5_000
    whole = [None] if header_bytes == 16 else []  # the header is longer than what was asked for first
    assert asked == [f"bytes=0-{header_bytes - 1}", *whole]
    place.put(next(name for name in place.objects() if name.endswith(".keys")), b"")
    (there,) = list_spaces(place.folder / "none", place.tier())
    assert there.rows == 0


def test_tier__export_brings_what_this_disk_lacks(place: Place) -> None:
    writer = place.worker("writer")
    fill(writer, range(10))
    some = place.worker("some")
    some.fetch(digests(range(10)))
    fill(writer, range(5, 20))
    for name in ("some", "none"):
        done = export(place.folder / name, ONE, place.folder / "a.parquet", place.tier())
        assert (done.segments, done.rows) == (2, 20)
        table = pq.read_table(place.folder / "a.parquet").to_pylist()
        assert {row["digest_prefix"]: row["vector"][0] for row in table} == {
            digest(n)[:32]: n for n in range(20)
        }
    with pytest.raises(CacheError, match="holds nothing of the fingerprint"):
        export(place.folder / "none", "2" * 64, place.folder / "b.parquet", place.tier())


@pytest.mark.parametrize("part_bytes", [32 << 20, 5 << 20], ids=["put", "multipart"])
def test_tier__conflict_with_another_writer_is_tried_again(
    place: Place, monkeypatch: pytest.MonkeyPatch, part_bytes: int
) -> None:
    monkeypatch.setattr(s3, "_PART_BYTES", part_bytes)
    dim, rows = 1_280, 1_200  # 6.1 MB
    last = "PUT" if part_bytes == 32 << 20 else "POST"
    answers: Iterator[Fault] = iter(
        [409, 409] if last == "PUT" else [None, 409, None, 409]
    )  # POST begins too

    def fault(method: str, name: str) -> Fault:
        return next(answers, None) if method == last and name.endswith(".arrow") else None

    writer = place.worker("writer", dim)
    place.proxy.fault = fault
    fill(writer, range(rows))
    assert next(answers, "used up") == "used up"
    check(place.worker("reader", dim), range(rows))
    assert place.server.list_multipart_uploads(Bucket=place.bucket).get("Uploads", []) == []

    place.proxy.fault = lambda method, name: 409 if method == last and name.endswith(".arrow") else None
    with pytest.raises(CacheError, match="the S3 server answered 409"):
        fill(writer, range(rows, 2 * rows))


def test_tier__wrong_credentials_are_named_without_the_secret(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-of-mine")
    with pytest.raises(CacheError) as wrong:
        place.worker("writer")
    assert str(wrong.value) == f"{place.url}/{ONE}: the credentials are wrong; check AWS_SECRET_ACCESS_KEY"
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(place.folder))
    del place.made
    with pytest.raises(CacheError, match=r"no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY$"):
        place.worker("writer")


def test_tier__no_bucket_no_server_and_no_address_are_named(place: Place) -> None:
    def refused(url: str, endpoint: str | None) -> str:
        settings = place.settings.model_copy(update={"s3_endpoint_url": endpoint})
        with pytest.raises(CacheError) as error:
            EmbeddingCache(place.folder / "x", ONE, DIM, Tier(url, settings))
        return str(error.value)

    assert refused("s3://no-such-bucket-here/x", place.proxy.url) == (
        f"s3://no-such-bucket-here/x/{ONE}: there is no such bucket"
    )
    check_address = "check REGRAFT_S3_ENDPOINT_URL or AWS_ENDPOINT_URL"
    assert refused(place.url, "http://127.0.0.1:9") == (
        f"{place.url}/{ONE}: the S3 server can't be reached; {check_address}"
    )
    assert refused(place.url, "user:secret@nowhere") == (
        f"{place.url}: the address of the S3 server is no URL; {check_address}"
    )


def test_tier__disk_that_is_full_is_not_blamed_on_the_server(place: Place) -> None:
    fill(place.worker("writer"), range(1_000))
    reader = place.worker("reader")
    folder = reader.folder
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):
        folder.rename(folder.with_name("gone"))  # root may write everywhere, but not into nothing
    with pytest.raises(CacheError, match=rf"^{folder}: can't write \w+\.arrow \("):
        reader.fetch(digests([1]))
