"""A `.skops` file that a test changes before a reader gets it."""

import io
import itertools
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

Node = dict[str, Any]


class EditedCheckpoint:
    """The members of a `.skops` file and its parsed schema.

    Parameters
    ----------
    source : Path
        The file to start from; it stays as it is.
    """

    def __init__(self, source: Path) -> None:
        with zipfile.ZipFile(source) as archive:
            self.members = {name: archive.read(name) for name in archive.namelist()}
        self.schema: Node = json.loads(self.members.pop("schema.json"))
        self._numbers = itertools.count(10**6)

    def get(self, *names: str) -> Node:
        """Return the node of an attribute of an attribute, and so on."""
        node = self.schema
        for name in names:
            node = _items(node)[name]
        return node

    def replace(self, *names: str, node: Node) -> None:
        """Replace the node of an attribute."""
        *parents, name = names
        _items(self.get(*parents))[name] = node

    def remove(self, *names: str) -> None:
        """Remove an attribute."""
        *parents, name = names
        del _items(self.get(*parents))[name]

    def set_value(self, *names: str, value: object) -> None:
        """Set an attribute to a string, number or constant."""
        self.replace(*names, node=json_node(value))

    def set_array(self, *names: str, value: np.ndarray) -> None:
        """Set an attribute to an array."""
        buffer = io.BytesIO()
        np.save(buffer, value)
        self.set_array_member(*names, data=buffer.getvalue())

    def set_array_member(self, *names: str, data: bytes) -> None:
        """Set an attribute to an array whose `.npy` file is `data`."""
        member = f"{next(self._numbers)}.npy"
        self.members[member] = data
        self.replace(
            *names, node=self._file_node("numpy", "ndarray", "NdArrayNode", member) | {"type": "numpy"}
        )

    def get_array(self, *names: str) -> np.ndarray:
        """Return an attribute that is an array."""
        return np.load(io.BytesIO(self.members[self.get(*names)["file"]]))

    def get_booster(self, unit: str) -> bytes:
        """Return the bytes of an AU's booster."""
        return self.members[self.get("classifiers", unit, "_Booster", "handle")["file"]]

    def set_booster(self, unit: str, data: bytes) -> None:
        """Replace the bytes of an AU's booster."""
        self.members[self.get("classifiers", unit, "_Booster", "handle")["file"]] = data

    def save(self, path: Path) -> Path:
        """Write the file."""
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in self.members.items():
                archive.writestr(name, data)
            archive.writestr("schema.json", json.dumps(self.schema))
        return path

    @staticmethod
    def _file_node(module: str, name: str, loader: str, member: str) -> Node:
        return {"__module__": module, "__class__": name, "__loader__": loader, "file": member}


def json_node(value: object) -> Node:
    """Return the node of a string, number or constant."""
    return {
        "__module__": "builtins",
        "__class__": "str",
        "__loader__": "JsonNode",
        "content": json.dumps(value),
        "is_json": True,
    }


def _items(node: Node) -> dict[str, Node]:
    """Return the attributes of an object, or the items of a dict."""
    state = node["content"] if node["__loader__"] == "ObjectNode" else node
    return state["content"]
