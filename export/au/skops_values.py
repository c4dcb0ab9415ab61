"""skops' schema -> plain values. Nothing is imported, constructed or executed.

`schema.json` is a tree of nodes, https://skops.readthedocs.io/en/stable/persistence.html. A node names its
kind (`__loader__`), the module and the class of the object, and an identifier (`__id__`). skops writes an
object that occurs twice in full each time; like skops' loader, this reader uses the first node for all.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from export.au.class_names import OBJECT_CLASSES
from export.au.json_text import decode_json
from export.au.npy import decode_npy
from export.au.quoting import quote, quote_name
from export.au.skops_archive import SkopsArchive
from export.errors import ExportError, located

MAX_DEPTH = 32
"""Nesting of nodes. A checkpoint has 9."""

_DICT_CLASSES = {"builtins.dict", "collections.OrderedDict"}
_TYPE_CLASSES = {f"builtins.{name}" for name in ("str", "int", "float", "bool", "NoneType")} | {"numpy.str_"}
_NUMBER_CLASSES = {
    f"numpy.{name}"
    for name in (
        "ndarray",
        "bool",
        "bool_",
        "float16",
        "float32",
        "float64",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
    )
}

Node = dict[str, object]


@dataclasses.dataclass(frozen=True)
class SkopsObject:
    """An object that skops stored: its class, such as ``sklearn.decomposition._pca.PCA``, and attributes."""

    class_name: str
    attributes: dict[str, object]


def read_skops(data: bytes) -> SkopsObject:
    """Return the object in a `.skops` file.

    Attributes are None, bool, int, float, str, bytes, list, tuple, dict, ndarray or `SkopsObject`.

    Raises
    ------
    ExportError
        If the file is no complete skops file, or has a type that is neither in this module's lists nor in
        `OBJECT_CLASSES`.
    """
    archive = SkopsArchive(data)
    with located("schema.json"):
        schema = decode_json(archive.read("schema.json"))
        root = _SchemaReader(archive).read(schema)
        if not isinstance(root, SkopsObject):
            raise ExportError("the file holds no object of py-feat; name a checkpoint of its AU classifiers")
    return root


class _SchemaReader:
    def __init__(self, archive: SkopsArchive) -> None:
        self._archive = archive
        self._depth = 0
        self._values: dict[int, object] = {}
        self._headers: dict[int, tuple[object, ...]] = {}
        self._readers: dict[str, Callable[[Node], object]] = {
            "DictNode": self._read_dict,
            "ListNode": self._read_list,
            "TupleNode": self._read_list,
            "JsonNode": self._read_json,
            "NdArrayNode": self._read_array,
            "BytesNode": self._read_bytes,
            "BytearrayNode": self._read_bytes,
            "TypeNode": self._read_type,
            "ObjectNode": self._read_object,
            "CachedNode": self._read_cached,
        }

    def read(self, node: object) -> object:
        if not isinstance(node, dict):
            raise ExportError(f"a node is {quote(node)}, not a JSON object")
        loader = node.get("__loader__")
        reader = self._readers.get(loader) if isinstance(loader, str) else None
        if reader is None:
            raise ExportError(f"the type {_class_name(node)} ({quote(loader)}) is not supported")
        identifier = node.get("__id__")
        if loader == "CachedNode" or type(identifier) is not int:
            return self._descend(reader, node)
        header = (loader, _class_name(node))
        if identifier in self._headers:
            return self._reuse(identifier, header)
        self._headers[identifier] = header
        self._values[identifier] = value = self._descend(reader, node)
        return value

    def _descend(self, reader: Callable[[Node], object], node: Node) -> object:
        if self._depth == MAX_DEPTH:
            raise ExportError(f"more than {MAX_DEPTH} nodes inside one another")
        self._depth += 1
        value = reader(node)
        self._depth -= 1
        return value

    def _reuse(self, identifier: int, header: tuple[object, ...]) -> object:
        if self._headers[identifier] != header:
            raise ExportError(f"the identifier {identifier} denotes objects of two types")
        if identifier not in self._values:
            raise ExportError(f"the object {identifier} contains itself")
        return self._values[identifier]

    def _read_cached(self, node: Node) -> object:
        identifier = node.get("__id__")
        if type(identifier) is not int or identifier not in self._headers:
            raise ExportError(f"a CachedNode names the unknown object {quote(identifier)}")
        return self._reuse(identifier, self._headers[identifier])

    def _read_dict(self, node: Node) -> dict[str, object]:
        _check_class(node, _DICT_CLASSES)
        self.read(node.get("key_types"))
        return {key: self._read_item(key, item) for key, item in _get_dict(node, "content").items()}

    def _read_item(self, key: str, item: object) -> object:
        with located(quote_name(key)):
            return self.read(item)

    def _read_list(self, node: Node) -> list[object]:
        _check_class(node, {"builtins.list", "builtins.tuple"})
        return [self.read(item) for item in _get_list(node, "content")]

    def _read_json(self, node: Node) -> object:
        content = node.get("content")
        value = decode_json(content) if isinstance(content, str) else node
        if isinstance(value, dict | list):
            raise ExportError(f"a JsonNode holds {quote(content)}, not a string, number or constant")
        return value

    def _read_array(self, node: Node) -> NDArray[np.generic] | list[object]:
        _check_class(node, _NUMBER_CLASSES)
        if node.get("type") == "json":
            return self._read_names(node)
        name = _get_file(node)
        with located(quote_name(name)):
            return decode_npy(self._archive.read(name))

    def _read_names(self, node: Node) -> list[object]:
        """Read an object array of strings: scikit-learn's `feature_names_in_` after training on a table."""
        names = [self.read(item) for item in _get_list(node, "content")]
        if not all(isinstance(name, str) for name in names):
            raise ExportError("an object array; the reader reads arrays of numbers")
        return names

    def _read_bytes(self, node: Node) -> bytes:
        _check_class(node, {"builtins.bytes", "builtins.bytearray"})
        return self._archive.read(_get_file(node))

    def _read_type(self, node: Node) -> str:
        _check_class(node, _TYPE_CLASSES)
        return _class_name(node)

    def _read_object(self, node: Node) -> SkopsObject:
        _check_class(node, OBJECT_CLASSES)
        content = self.read(node["content"]) if "content" in node else {}
        if not isinstance(content, dict):
            raise ExportError(f"the state of {_class_name(node)} is no dict of attributes")
        return SkopsObject(_class_name(node), content)


def _class_name(node: Node) -> str:
    module, name = node.get("__module__"), node.get("__class__")
    if isinstance(module, str) and isinstance(name, str):
        return quote_name(f"{module}.{name}")
    return f"{quote(module)}.{quote(name)}"


def _check_class(node: Node, known: set[str]) -> None:
    if _class_name(node) not in known:
        raise ExportError(f"the type {_class_name(node)} is not supported")


def _get_dict(node: Node, key: str) -> dict[str, object]:
    value = node.get(key)
    if not isinstance(value, dict):
        raise ExportError(f"{key} of {_class_name(node)} is {quote(value)}, not a JSON object")
    return value


def _get_list(node: Node, key: str) -> list[object]:
    value = node.get(key)
    if not isinstance(value, list):
        raise ExportError(f"{key} of {_class_name(node)} is {quote(value)}, not a JSON list")
    return value


def _get_file(node: Node) -> str:
    value = node.get("file")
    if not isinstance(value, str):
        raise ExportError(f"file of {_class_name(node)} is {quote(value)}, not a member's name")
    return value
