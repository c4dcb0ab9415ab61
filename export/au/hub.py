"""Download of the AU classifiers that py-feat published on the Hugging Face hub."""

from pathlib import Path
from typing import Literal

from export.hub import MissingFileError, download


def fetch_published_classifiers(kind: Literal["xgb", "svm"]) -> Path:
    """Download the classifiers of a kind into the hub's cache: version 2 or, where it is missing, the first.

    py-feat 2.1.5 loads the same files (`feat/pretrained.py`).

    Raises
    ------
    ExportError
        When huggingface_hub is not installed, or the hub is unreachable.
    """
    repository = f"py-feat/{kind}_au"
    newest, first = f"{kind}_au_classifier_v2.skops", f"{kind}_au_classifier.skops"
    alternative = f"download {newest} elsewhere and name it with --weights"
    try:
        (weights,) = download(repository, [newest], alternative)
    except MissingFileError:
        (weights,) = download(repository, [first], alternative)
    return weights
