"""S3: how it is reached, and its errors in words. Credentials come from the environment alone, and
no text of an error repeats them."""

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from tasks.errors import DataError, RegraftError
from tasks.settings import Settings

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, ObjectIdentifierTypeDef

CONNECTIONS = 16
THERE = ("PreconditionFailed", "412")  # what a conditional request is answered
# What it is answered beside another one for the same object; boto3 does not ask again.
_CONFLICT = ("ConditionalRequestConflict", "OperationAborted", "409")
ATTEMPTS = 5  # at a request (by boto3: exponential backoff with jitter), and at an object's body
_PART_BYTES = 32 << 20  # of one request; a larger object takes several at once
_PARTS = 4
_CONNECT_S, _READ_S = 10, 60  # how long a server may say nothing
_REASONS = {
    "NoSuchBucket": "there is no such bucket",
    "404": "there is no such bucket or object",
    "NoSuchKey": "there is no such object",
    "AccessDenied": "the credentials don't allow it",
    "403": "the credentials are wrong or don't allow it",
    "InvalidAccessKeyId": "the credentials are wrong (unknown access key); check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the credentials are wrong; check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the credentials have expired",
}
T = TypeVar("T")


def client(settings: Settings, what: str, error: type[RegraftError] = DataError) -> "S3Client":
    """A client for the configured server; `what` is named where its address is no URL."""
    try:
        # A session of its own: boto3's default one keeps the first credentials that it sees.
        return boto3.Session().client(
            "s3",
            endpoint_url=settings.s3_endpoint_url,  # None: AWS_ENDPOINT_URL, else AWS
            config=Config(
                retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                max_pool_connections=CONNECTIONS,
                connect_timeout=_CONNECT_S,
                read_timeout=_READ_S,
            ),
        )
    except ValueError:  # boto3's text repeats the address, which may hold a password
        raise error(
            f"{what}: the address of the S3 server is no URL; "
            "check REGRAFT_S3_ENDPOINT_URL or AWS_ENDPOINT_URL"
        ) from None


@contextmanager
def explained(what: str, error: type[RegraftError] = DataError) -> Iterator[None]:
    """Turns errors of boto3 into one line without keys, tokens or addresses.

    Raises:
        RegraftError: `error`, instead of boto3's errors.
    """
    try:
        yield
    except ClientError as failure:
        code = code_of(failure)
        raise error(f"{what}: {_REASONS.get(code, f'the S3 server answered {code}')}") from None
    except (NoCredentialsError, PartialCredentialsError):
        raise error(f"{what}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from None
    except (EndpointConnectionError, ConnectTimeoutError):
        raise error(
            f"{what}: the S3 server can't be reached; check REGRAFT_S3_ENDPOINT_URL or AWS_ENDPOINT_URL"
        ) from None
    except ReadTimeoutError:
        raise error(f"{what}: the S3 server gave no answer for {_READ_S} s") from None
    except (ConnectionClosedError, IncompleteReadError, ResponseStreamingError):
        raise error(f"{what}: the S3 server broke off in the middle, {ATTEMPTS} times") from None
    except BotoCoreError as failure:
        raise error(f"{what}: S3 failed ({type(failure).__name__})") from None


def code_of(failure: ClientError) -> str:
    """`NoSuchKey`, `404`, ..."""
    return str(failure.response.get("Error", {}).get("Code", "unknown"))


def read_body(read: Callable[[], T]) -> T:
    """Calls `read`, which gets an object and reads its body, again where the body breaks off: boto3
    itself retries no more than the request."""
    for attempt in range(1, ATTEMPTS):
        try:
            return read()
        except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
            _pause(attempt)
    return read()


def get(client: "S3Client", bucket: str, key: str) -> bytes:
    """The content of a small object."""
    return read_body(lambda: client.get_object(Bucket=bucket, Key=key)["Body"].read())


def get_start(client: "S3Client", bucket: str, key: str, count: int) -> bytes:
    """The first `count` bytes of an object, or all where it has fewer; an empty one is an InvalidRange."""
    asked = f"bytes=0-{count - 1}"
    return read_body(lambda: client.get_object(Bucket=bucket, Key=key, Range=asked)["Body"].read())


def download(client: "S3Client", bucket: str, key: str, to: Path, size: int) -> None:
    """Writes an object of `size` bytes over the file `to`, in parts at once where it is large."""
    with to.open("wb") as file:

        def part(start: int) -> None:
            body = client.get_object(
                Bucket=bucket, Key=key, Range=f"bytes={start}-{start + _PART_BYTES - 1}"
            )["Body"]
            at = start
            for block in body.iter_chunks(1 << 20):
                at += os.pwrite(file.fileno(), block, at)

        if size <= _PART_BYTES:
            read_body(lambda: _write(client.get_object(Bucket=bucket, Key=key)["Body"], file))
        else:
            with ThreadPoolExecutor(_PARTS) as pool:
                list(pool.map(lambda start: read_body(lambda: part(start)), range(0, size, _PART_BYTES)))


def put_new(client: "S3Client", bucket: str, key: str, content: memoryview) -> None:
    """Writes an object unless there is one of that name, in parts at once where it is large."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            if len(content) > _PART_BYTES:
                _put_parts(client, bucket, key, content)  # all anew: S3 refuses the parts of before
            else:
                client.put_object(Bucket=bucket, Key=key, Body=content.tobytes(), IfNoneMatch="*")
        except ClientError as failure:
            if code_of(failure) in THERE:
                return
            if code_of(failure) not in _CONFLICT or attempt == ATTEMPTS:
                raise
        else:
            return
        _pause(attempt)


def delete(client: "S3Client", bucket: str, keys: Sequence[str]) -> None:
    """Removes objects, as far as they are there."""
    for start in range(0, len(keys), 1_000):  # the most that S3 takes at once
        objects: list[ObjectIdentifierTypeDef] = [{"Key": key} for key in keys[start : start + 1_000]]
        answer = client.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
        for error in answer.get("Errors", []):
            raise ClientError({"Error": {"Code": error.get("Code", "unknown")}}, "DeleteObjects")


def _pause(attempt: int) -> None:
    time.sleep(random.uniform(0, 2**attempt / 4))  # noqa: S311 - jitter


def _write(body: "StreamingBody", file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()
    file.writelines(body.iter_chunks(1 << 20))


def _put_parts(client: "S3Client", bucket: str, key: str, content: memoryview) -> None:
    upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]

    def part(number: int) -> "CompletedPartTypeDef":
        body = content[(number - 1) * _PART_BYTES : number * _PART_BYTES].tobytes()
        done = client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=body)
        return {"PartNumber": number, "ETag": done["ETag"]}

    try:
        parts = range(1, -(-len(content) // _PART_BYTES) + 1)
        with ThreadPoolExecutor(_PARTS) as pool:
            made = list(pool.map(part, parts))
        client.complete_multipart_upload(
            Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": made}, IfNoneMatch="*"
        )
    except BaseException:
        with suppress(BotoCoreError, ClientError):  # what is left then is aborted by a compaction
            client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
        raise
