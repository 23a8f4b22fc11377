"""S3: how it is reached, and its errors in words. Credentials come from the environment alone, and
no text of an error repeats them."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

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
    from mypy_boto3_s3.client import S3Client

CONNECTIONS = 16
ATTEMPTS = 5  # at a request (by boto3: exponential backoff with jitter), and at an object's body
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
            time.sleep(random.uniform(0, 2**attempt / 4))  # noqa: S311 - jitter
    return read()
