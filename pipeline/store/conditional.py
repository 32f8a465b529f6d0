"""Writes on a condition, where the object store and an installed client offer them (S3, boto3)."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

from pyarrow import fs as pafs

from archipelago.pipeline.store.folder import Folder

ABSENT, CONFLICT, CHANGED = (
    404,
    409,
    412,
)  # nothing to replace; at the same time; another came first
TRIES = 3  # of writes that met another one


class S3Objects:
    """Objects of one folder in S3, written only where nothing changed since they were looked at.

    Every method raises OSError where the store cannot be reached or refuses.
    """

    def __init__(self, client: Any, path: str):
        self._client = client
        self._bucket, _, self._prefix = path.partition("/")

    def tag(self, name: str) -> str | None:
        """What names the present content of an object; None where there is no such object."""
        with _os_errors(name):
            try:
                return str(self._client.head_object(**self._at(name))["ETag"])
            except self._client.exceptions.ClientError as error:
                if _status(error) != ABSENT:
                    raise
        return None

    def put(self, name: str, data: bytes, tag: str | None) -> str | None:
        """Write if the object still has this tag, or with None if it is absent.

        Returns:
            The new tag, or None where another came first: then nothing was written.
        """
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        for left in reversed(range(TRIES)):
            with _os_errors(name):
                try:
                    written = self._client.put_object(**self._at(name), Body=data, **condition)
                    return str(written["ETag"])
                except self._client.exceptions.ClientError as error:
                    if _status(error) in (ABSENT, CHANGED):
                        break
                    if _status(error) != CONFLICT or not left:
                        raise
        return self._tag_if(name, data)

    def _tag_if(self, name: str, data: bytes) -> str | None:
        """An answer that was lost is asked for again, and then refused because of itself."""
        try:
            found = self._client.get_object(**self._at(name))
        except self._client.exceptions.ClientError:
            return None
        return str(found["ETag"]) if found["Body"].read() == data else None

    def _at(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": f"{self._prefix}/{name}"}


def conditional(folder: Folder, probe: str) -> S3Objects | None:
    """Conditional writes in `folder`; None where the store or the installation has none.

    `probe` is an object that is there: a store that writes it "only where it is absent" ignores
    conditions. Raises: OSError where the store cannot be reached.
    """
    system, path = folder.place
    if not isinstance(system, pafs.S3FileSystem) or importlib.util.find_spec("boto3") is None:
        return None
    client = _client(system)
    if client is None:
        return None
    objects = S3Objects(client, path)
    try:
        return objects if objects.put(probe, b"", None) is None else None
    except NotImplementedError:
        return None


def _client(system: pafs.S3FileSystem) -> Any:
    """A client with the address and the credentials of `system`; None where boto3 has no such."""
    import boto3
    from botocore.config import Config

    options = system.__reduce__()[1][0]  # what pickling keeps: the arguments it was made with
    if options["anonymous"] or options["role_arn"] or options["proxy_options"]["host"]:
        return None
    host, virtual = options["endpoint_override"], options["force_virtual_addressing"]
    config = Config(
        connect_timeout=10,
        read_timeout=10,
        retries={"mode": "standard", "total_max_attempts": 2},
        s3={"addressing_style": "path" if host and not virtual else "auto"},
    )
    return boto3.client(
        "s3",
        endpoint_url=f"{options['scheme']}://{host}" if host else None,
        region_name=system.region,
        verify=options["tls_ca_file_path"] or None,
        aws_access_key_id=options["access_key"] or None,
        aws_secret_access_key=options["secret_key"] or None,
        aws_session_token=options["session_token"] or None,
        config=config,
    )


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


@contextlib.contextmanager
def _os_errors(name: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        if _status(error) == 501:
            raise NotImplementedError(name) from None
        raise OSError(f"{name}: {error}") from None
    except BotoCoreError as error:
        raise OSError(f"{name}: {error}") from None
