"""Download of the pose checkpoint that py-feat published on the Hugging Face hub."""

from pathlib import Path

from export.errors import ExportError

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
    try:
        import httpx
        import huggingface_hub
    except ImportError as error:
        raise ExportError(
            "--hub needs the package huggingface_hub: install it with pip, or download the two files "
            "elsewhere and name them with --weights and --meta"
        ) from error
    try:
        weights, meta = (huggingface_hub.hf_hub_download(REPOSITORY, name) for name in FILES)
    except (OSError, httpx.HTTPError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ExportError(
            f"the Hugging Face hub is unreachable or has no {REPOSITORY} ({reason}); download "
            f"{' and '.join(FILES)} elsewhere and name them with --weights and --meta"
        ) from error
    return Path(weights), Path(meta)
