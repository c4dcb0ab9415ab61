"""Bounded access to the members of a `.skops` file, a zip archive."""

import io
import os
import re
import zipfile
import zlib
from pathlib import Path

from export.au.quoting import quote
from export.errors import ExportError

MAX_FILE_BYTES = 2 << 30
"""Bound of a file, packed and unpacked. A checkpoint of the published size has 60 to 140 MB."""

MAX_MEMBER_BYTES = {".npy": 512 << 20, ".bin": 64 << 20, ".json": 8 << 20}
"""Bound of a member by suffix.

An array of 2,000 components of 30,000 HOG features has 480 MB, the booster of an AU with 30,000 nodes 1.4 MB,
and schema.json of 20 AUs 0.5 MB. The values in a booster and in the schema need up to 30 times their size in
memory, those in an array no more than their size.
"""

MAX_RATIO = 200
"""Bound of unpacked to packed bytes of a large member. Weights deflate to a half, a schema to a fortieth."""

SMALL_MEMBER_BYTES = 1 << 20
"""The ratio of smaller members is not limited."""

_MEMBER_NAME = re.compile(r"schema\.json|[0-9]{1,20}\.npy|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.bin")


def read_file(path: Path) -> bytes:
    """Return the bytes of a checkpoint.

    Raises
    ------
    ExportError
        If `path` is no regular file, cannot be read or exceeds `MAX_FILE_BYTES`.
    """
    try:
        if path.exists() and not path.is_file():
            raise ExportError("not a regular file; name a .skops file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise ExportError(f"the file has {size:,} bytes, more than {MAX_FILE_BYTES:,}")
            return file.read(size)
    except OSError as error:
        raise ExportError(f"cannot read the file: {error.strerror}; name a .skops file") from error


class SkopsArchive:
    """The members of a `.skops` file. Each is unpacked when it is first read, and only once.

    Raises
    ------
    ExportError
        If the bytes are no zip archive, a member's name or compression is not skops', a name occurs twice,
        or the declared sizes exceed the bounds of this module.
    """

    def __init__(self, data: bytes) -> None:
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, IndexError) as error:
            raise ExportError(
                f"not a complete zip archive ({error}); name a .skops file, download or copy it again"
            ) from error
        self._content: dict[str, bytes] = {}
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in self._zip.infolist():
            _check_member(member)
            if member.filename in self._members:
                raise ExportError(f"the archive has two members {member.filename!r}")
            self._members[member.filename] = member
        total = sum(member.file_size for member in self._members.values())
        if total > MAX_FILE_BYTES:
            raise ExportError(f"the members have {total:,} bytes, more than {MAX_FILE_BYTES:,}")

    def read(self, name: str) -> bytes:
        """Return the bytes of a member, after its CRC-32 is checked."""
        if name not in self._members:
            raise ExportError(f"the archive lacks the member {quote(name)}; download or copy the file again")
        if name not in self._content:
            self._content[name] = self._unpack(self._members[name])
        return self._content[name]

    def _unpack(self, member: zipfile.ZipInfo) -> bytes:
        try:
            with self._zip.open(member) as file:
                data = file.read(member.file_size + 1)
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            OSError,
            NotImplementedError,
            RuntimeError,
            ValueError,
        ) as error:
            raise ExportError(
                f"the member {member.filename!r} is damaged ({error}); download or copy the file again"
            ) from error
        if len(data) != member.file_size:
            raise ExportError(
                f"the member {member.filename!r} has {len(data):,} bytes and declares {member.file_size:,}"
            )
        return data


def _check_member(member: zipfile.ZipInfo) -> None:
    name = member.filename
    if not _MEMBER_NAME.fullmatch(member.orig_filename):
        raise ExportError(
            f"the archive has a member {quote(name)}. The reader accepts schema.json, NUMBER.npy and "
            "UUID.bin, but no pickle and no sparse matrix"
        )
    if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ExportError(f"the member {name!r} is encrypted or neither stored nor deflated")
    bound = MAX_MEMBER_BYTES[Path(name).suffix]
    if member.file_size > bound:
        raise ExportError(f"the member {name!r} has {member.file_size:,} bytes, more than {bound:,}")
    if member.file_size > max(SMALL_MEMBER_BYTES, MAX_RATIO * member.compress_size):
        raise ExportError(
            f"the member {name!r} unpacks {member.compress_size:,} bytes to {member.file_size:,}, more than "
            f"{MAX_RATIO} times as many"
        )
