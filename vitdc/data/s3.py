"""Image files in S3 or any store that speaks its protocol."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from vitdc.data.decoding import File, Unreadable
from vitdc.data.fetching import CHUNK_SIZE, NUM_THREADS, fetch_all
from vitdc.errors import InputError, one_line
from vitdc.progress import progress_bar

SCHEME = "s3://"
CONNECT_TIMEOUT, READ_TIMEOUT = 5, 30  # seconds
NUM_ATTEMPTS = 3  # to read a body

ADVICE = {
    "NoSuchBucket": "there is no such bucket; check data.source",
    "404": "nothing speaks S3 there; check data.endpoint_url",
    "InvalidAccessKeyId": "the access key is unknown there; check your AWS credentials",
    "SignatureDoesNotMatch": "the secret key is wrong; check your AWS credentials",
    "ExpiredToken": "the session token has expired; log in again",
    "AccessDenied": "access denied; check your AWS credentials and their right to list and read",
}

# What a store says of one object, though others may be had
OF_ONE_OBJECT = {
    "NoSuchKey": "no such object any more",
    "AccessDenied": "access denied",
    "InvalidObjectState": "archived; restore it first",
}


@dataclass(frozen=True)
class Bucket:
    """A bucket, or what lies under a prefix of it, as a `files.Store`.

    Attributes:
        location: s3://bucket/prefix/
        bucket: Name of the bucket.
        prefix: Empty, or ends with a slash.
        client: Of boto3; threads may share it.
    """

    chunk_size: ClassVar[int] = CHUNK_SIZE
    origin: ClassVar[Mapping[str, str]] = {}

    location: str
    bucket: str
    prefix: str
    client: Any

    @classmethod
    def open(cls, url: str, *, endpoint_url: str | None) -> Self:
        """Make a client from the usual AWS credential chain; nothing is requested yet.

        Raises:
            InputError: The URL names no bucket, or the AWS configuration is not valid.
        """
        bucket, _, prefix = url.removeprefix(SCHEME).partition("/")
        if not bucket:
            raise InputError(f"data.source: {url}: names no bucket; write {SCHEME}bucket/prefix")
        prefix = prefix.rstrip("/") + "/" if prefix.rstrip("/") else ""
        location = f"{SCHEME}{bucket}/{prefix}"
        with _one_clear_line(location, endpoint_url):
            client = _make_client(endpoint_url)
        return cls(location, bucket, prefix, client)

    def names(self) -> list[str]:
        """All keys relative to the prefix."""
        return list(self.states())

    def states(self) -> dict[str, str]:
        """Of every key its size and ETag, which change with the content."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self.prefix
        )
        states: dict[str, str] = {}
        with (
            _one_clear_line(self.location, self.client.meta.endpoint_url),
            progress_bar(desc=f"list {self.location}", unit=" objects") as progress,
        ):
            for page in pages:
                entries = page.get("Contents", ())
                states |= {
                    entry["Key"].removeprefix(self.prefix): f"{entry['Size']} {entry['ETag']}"
                    for entry in entries
                    if not entry["Key"].endswith("/")
                }
                progress.update(len(entries))
        return states

    def files(self, names: Sequence[str]) -> Generator[File]:
        """The objects' contents, fetched by several threads a bounded way ahead."""
        return fetch_all(self._fetch, names)

    def _fetch(self, name: str) -> File:
        """Content of one object. botocore repeats failed requests, but not failed bodies."""
        from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError

        with _one_clear_line(self.location + name, self.client.meta.endpoint_url):
            for attempt in range(NUM_ATTEMPTS):
                try:
                    response = self.client.get_object(Bucket=self.bucket, Key=self.prefix + name)
                except ClientError as error:
                    code = str(error.response["Error"].get("Code", ""))
                    if code in OF_ONE_OBJECT:
                        return Unreadable(OF_ONE_OBJECT[code])
                    raise
                try:
                    content: bytes = response["Body"].read()
                    return content
                except (HTTPClientError, IncompleteReadError):
                    if attempt == NUM_ATTEMPTS - 1:
                        raise
        raise AssertionError("unreachable")


def _make_client(endpoint_url: str | None) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        retries={"mode": "standard"},  # 3 attempts, or as many as AWS_MAX_ATTEMPTS says
        max_pool_connections=NUM_THREADS,
    )
    return boto3.session.Session().client("s3", endpoint_url=endpoint_url, config=config)


@contextmanager
def _one_clear_line(location: str, endpoint_url: str | None) -> Iterator[None]:
    """Say what boto3 found in the user's words."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        EndpointConnectionError,
        HTTPClientError,
        NoCredentialsError,
    )

    try:
        yield
    except NoCredentialsError:
        raise InputError(
            f"{location}: no AWS credentials found; set AWS_ACCESS_KEY_ID and"
            " AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        ) from None
    except ClientError as error:
        raise InputError(f"{location}: {_refusal(error.response)}") from None
    except (EndpointConnectionError, HTTPClientError) as error:
        raise InputError(
            f"{location}: cannot reach {endpoint_url}; check data.endpoint_url and the network"
            f" ({one_line(error)})"
        ) from None
    except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
        raise InputError(f"{location}: {one_line(error)}") from None


def _refusal(response: dict[str, Any]) -> str:
    code = str(response["Error"].get("Code", ""))
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    advice = ADVICE.get("AccessDenied" if code not in ADVICE and status == 403 else code)
    if advice:
        return f"{advice} ({code})"
    return f"the store answered {code}: {one_line(response['Error'].get('Message', ''))}"
