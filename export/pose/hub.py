"""Download of the pose checkpoint that py-feat published on the Hugging Face hub."""

from pathlib import Path

from export.hub import download

REPOSITORY = "py-feat/pose_mlp_v2"
FILES = ("pose_mlp_v2.safetensors", "pose_mlp_v2.json")


def fetch_published_checkpoint() -> tuple[Path, Path]:
    """Download the published weights and description into the hub's cache.

    Returns
    -------
    Path, Path
        The ``.safetensors`` and the ``.json`` file.

    Raises
    ------
    ExportError
        When huggingface_hub is not installed, or the hub is unreachable.
    """
    alternative = f"download {' and '.join(FILES)} elsewhere and name them with --weights and --meta"
    weights, meta = download(REPOSITORY, FILES, alternative)
    return weights, meta
