"""The origin of a built pose model, as its ONNX metadata record it: checkpoint and source of the exporter."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

DEFAULT_CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "pose_mlp.safetensors"
"""The project's own weights; the description is beside them."""

EXPORTER = tuple(Path(__file__).with_name(name) for name in ("checkpoint.py", "network.py", "graph.py"))
"""The source files that determine the graph of a checkpoint."""

UNMARKED_PROJECT_WEIGHTS = (
    "22b8b9ee55b568c3a172618822efbb86dd278c567144cf693e898c9046f5b61b",
    "8032f4679efde6247235f44d3dcfa356b969c53ad6c6530d530a52061d1d64bd",
)
"""SHA-256 of the project's weights when models had no entry `project_checkpoint` in their metadata."""


def describe_origin(weights: tuple[str, bytes], meta: tuple[str, bytes]) -> dict[str, str]:
    """Return the metadata that identify a checkpoint and the exporter.

    Parameters
    ----------
    weights, meta : (str, bytes)
        Name and content of the two files of the checkpoint.
    """
    hashes = {"weights_sha256": _sha256(weights[1]), "meta_sha256": _sha256(meta[1])}
    is_project = hashes.items() <= project_origin().items()
    return hashes | {
        "weights": weights[0],
        "meta": meta[0],
        "project_checkpoint": "yes" if is_project else "no",
        "exporter_sha256": _exporter_sha256(),
    }


def project_origin() -> dict[str, str]:
    """Return the hashes in the metadata of an up-to-date model of the project's own checkpoint."""
    return {
        "weights_sha256": _sha256(DEFAULT_CHECKPOINT.read_bytes()),
        "meta_sha256": _sha256(DEFAULT_CHECKPOINT.with_suffix(".json").read_bytes()),
        "exporter_sha256": _exporter_sha256(),
    }


def is_of_project(origin: Mapping[str, str]) -> bool:
    """Return whether metadata name a checkpoint of the project, the current one or an earlier one."""
    marked = origin.get("project_checkpoint")
    return marked == "yes" or (marked is None and origin.get("weights_sha256") in UNMARKED_PROJECT_WEIGHTS)


def _exporter_sha256() -> str:
    return _sha256(b"".join(path.read_bytes() for path in EXPORTER))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
