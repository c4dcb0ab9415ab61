"""The reader of AU checkpoints, with archives, arrays and bytes that are damaged or hostile."""

import io
import os
import random
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from export.au import skops_archive
from export.au.checkpoint import load_au_checkpoint
from export.au.classifiers import AuCheckpoint
from export.au.npy import decode_npy
from export.errors import ExportError
from tests.support.edited_checkpoint import EditedCheckpoint
from tests.unit.test_au_checkpoint import OLD_FILES, OLD_SVM, OLD_XGB, assert_equal

OLD_UBJSON = OLD_FILES / "xgboost_2.1.4.skops"


def refuse(path: Path, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        load_au_checkpoint(path)


def test_paths_that_are_no_file_are_refused(tmp_path: Path):
    refuse(tmp_path / "missing.skops", "missing.skops: cannot read the file: No such file")
    refuse(tmp_path, "not a regular file")
    os.mkfifo(tmp_path / "pipe")
    refuse(tmp_path / "pipe", "not a regular file")


@pytest.mark.parametrize(
    "data",
    [b"", b"PK", b"\x80\x04N.", b"safetensors" * 10, OLD_XGB.read_bytes()[:-30], OLD_XGB.read_bytes()[:5000]],
    ids=["empty", "two bytes", "pickle", "other format", "cut off", "half"],
)
def test_files_that_are_no_archive_are_refused(tmp_path: Path, data: bytes):
    path = tmp_path / "broken.skops"
    path.write_bytes(data)
    refuse(path, "not a complete zip archive")


def write_archive(
    path: Path, members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    "name",
    ["../schema.json", "/1.npy", "a/1.npy", "model.pkl", "1.npz", "C:\\1.npy", "1.npy/", "1.npy "],
)
def test_members_with_other_names_are_refused(tmp_path: Path, name: str):
    path = write_archive(tmp_path / "names.skops", [("schema.json", b"{}"), (name, b"")])
    refuse(path, "the archive has a member")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_occurs_twice_is_refused(tmp_path: Path):
    path = write_archive(tmp_path / "twice.skops", [("schema.json", b"{}"), ("schema.json", b"{}")])
    refuse(path, "two members 'schema.json'")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path: Path, compression: int):
    refuse(
        write_archive(tmp_path / "other.skops", [("schema.json", b"{}")], compression), "neither stored nor"
    )


DEEP_NODE = b'{"__loader__": ' + b"[" * 800 + b"]" * 800 + b"}"
"""The JSON decoder accepts it; its representation is shortened in the message."""


KEY_TWICE_AFTER_MANY = b"{" + b",".join(b'"%d":0' % key for key in [*range(300_000), 299_999]) + b"}"
"""Comparing all pairs of keys would take hours."""


@pytest.mark.parametrize(
    "schema",
    [
        b"",
        b"[]",
        b"{}",
        b"1",
        b"null",
        b"\xff",
        b"[" * 10**6,
        b'{"a":' * 10**5,
        DEEP_NODE,
        KEY_TWICE_AFTER_MANY,
    ],
    ids=["empty", "list", "object", "number", "null", "text", "deep list", "deep object", "deep node", "key"],
)
def test_damaged_schemas_are_refused(tmp_path: Path, schema: bytes):
    refuse(write_archive(tmp_path / "schema.skops", [("schema.json", schema)]), "schema.json: ")


def test_a_missing_schema_and_missing_members_are_refused(tmp_path: Path):
    refuse(write_archive(tmp_path / "empty.skops", []), "lacks the member 'schema.json'")
    edited = EditedCheckpoint(OLD_XGB)
    missing = edited.get("scaler_lower", "mean_")["file"]
    del edited.members[missing]
    refuse(edited.save(tmp_path / "missing.skops"), f"scaler_lower: mean_: .*lacks the member '{missing}'")


@pytest.mark.parametrize(("name", "size"), [("schema.json", 9 << 20), ("1.npy", 64 << 20)])
def test_zip_bombs_are_refused_before_they_are_unpacked(tmp_path: Path, name: str, size: int):
    path = tmp_path / "bomb.skops"
    write_archive(path, [(name, bytes(size))], zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    refuse(path, f"the member '{name}' (has|unpacks)")
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_sizes_beyond_the_bounds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    size = OLD_XGB.stat().st_size
    monkeypatch.setattr(skops_archive, "MAX_FILE_BYTES", size)
    refuse(OLD_XGB, "the members have .* bytes, more than")
    monkeypatch.setattr(skops_archive, "MAX_FILE_BYTES", size - 1)
    refuse(OLD_XGB, "the file has .* bytes, more than")
    monkeypatch.undo()
    monkeypatch.setitem(skops_archive.MAX_MEMBER_BYTES, ".npy", 500)
    refuse(OLD_XGB, r"\.npy' has .* bytes, more than 500")


@pytest.mark.parametrize("declared", [10, 2**31])
def test_sizes_other_than_declared_are_refused(tmp_path: Path, declared: int):
    """Change the unpacked size of the first member in its local header and in the directory."""
    data = bytearray(OLD_XGB.read_bytes())
    directory = data.index(b"PK\x01\x02")
    data[22:26] = data[directory + 24 : directory + 28] = struct.pack("<I", declared)
    path = tmp_path / "declared.skops"
    path.write_bytes(data)
    refuse(path, "is damaged|bytes, more than")


HEADER = "{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }"


def npy(header: str, values: bytes = bytes(16), version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(header) + 1) + header.encode() + b"\n" + values


@pytest.mark.parametrize(
    "array",
    [
        np.float64(3),
        np.arange(3),
        np.ones((2, 3), np.float32),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([True, False]),
        np.empty((0, 4)),
        np.arange(3, dtype=">i4"),
    ],
)
def test_arrays_that_numpy_writes(array: np.ndarray):
    buffer = io.BytesIO()
    np.save(buffer, array)
    decoded = decode_npy(buffer.getvalue())
    assert decoded.dtype == array.dtype
    np.testing.assert_array_equal(decoded, array)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "not an array"),
        (b"\x93NUMPY", "not an array"),
        (b"\x80\x04N.........", "not an array"),
        (npy(HEADER, version=b"\x09\x00"), "not an array"),
        (npy(HEADER)[:30], "header is truncated"),
        (npy(HEADER, bytes(8)), "describes 16 bytes of numbers, the file has 8"),
        (npy(HEADER, bytes(17)), "describes 16 bytes of numbers, the file has 17"),
        (
            npy(HEADER.replace("(2,)", "(9999999999, 9999999999)")),
            r"the shape \[9999999999, 9999999999\] exceeds",
        ),
        (
            npy(HEADER.replace("(2,)", "(0, 9999999999, 9999999999)")),
            r"the shape \[0, 9999999999, 99.* exceeds",
        ),
        (npy(HEADER.replace("(2,)", "(-2,)")), "does not describe an array of numbers"),
        (npy(HEADER.replace("(2,)", "(" + "9" * 5000 + ",)")), "does not describe an array of numbers"),
        (npy(HEADER.replace("<f8", "|O")), "an object array, which is a pickle"),
        (npy(HEADER.replace("<f8", "<c16")), "does not describe an array of numbers"),
        (npy(HEADER.replace("<f8", "<U3")), "does not describe an array of numbers"),
        (npy(HEADER.replace("'<f8'", "[('a', '<f8')]")), "does not describe an array of numbers"),
        (npy(HEADER.replace("(2,)", "__import__('os').abort()")), "does not describe an array of numbers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_arrays_are_refused(data: bytes, problem: str):
    with pytest.raises(ExportError, match=problem):
        decode_npy(data)


def is_refused(path: Path, data: bytes, original: AuCheckpoint) -> bool:
    """Return whether a changed file is refused; a file that is not must give the original checkpoint."""
    path.write_bytes(data)
    try:
        changed = load_au_checkpoint(path)
    except ExportError:
        return True
    assert_equal(changed, original)
    return False


@pytest.mark.parametrize("source", [OLD_XGB, OLD_UBJSON, OLD_SVM], ids=lambda path: path.stem)
def test_damaged_bytes_and_truncated_files_never_change_a_checkpoint(tmp_path: Path, source: Path):
    """The CRC-32 of the members finds each change inside them."""
    generator = random.Random(0)
    data, original = source.read_bytes(), load_au_checkpoint(source)
    path = tmp_path / "damaged.skops"
    refused = 0
    for _ in range(60):
        damaged = bytearray(data)
        damaged[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        refused += is_refused(path, bytes(damaged), original)
    directory = data.index(b"PK\x01\x02")
    for position in generator.sample(range(directory, len(data)), 60):
        damaged = bytearray(data)
        damaged[position] = generator.randrange(256)
        refused += is_refused(path, bytes(damaged), original)
        refused += is_refused(path, data[:position], original)
    assert refused > 90


@pytest.mark.parametrize("member", ["schema", "array", "booster"])
def test_changed_members_raise_no_other_error(tmp_path: Path, member: str):
    """With a correct CRC-32 a change may give another checkpoint, but no error other than ExportError."""
    generator = random.Random(0)
    path = tmp_path / "changed.skops"
    edited = EditedCheckpoint(OLD_UBJSON)
    edited.save(path)
    names = {
        "schema": "schema.json",
        "array": edited.get("pca_model_upper", "components_")["file"],
        "booster": edited.get("classifiers", "AU1", "_Booster", "handle")["file"],
    }
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    original = members[names[member]]
    refused = 0
    for round_number in range(150):
        changed = bytearray(original)
        for _ in range(generator.choice([1, 1, 4])):
            changed[generator.randrange(len(changed))] = generator.randrange(256)
        if round_number % 5 == 0:
            del changed[generator.randrange(len(changed)) :]
        write_archive(path, list((members | {names[member]: bytes(changed)}).items()))
        try:
            load_au_checkpoint(path)
        except ExportError:
            refused += 1
    assert refused > 20
