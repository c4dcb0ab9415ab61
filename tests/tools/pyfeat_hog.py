"""py-feat's HOG of faces: `python pyfeat_hog.py FACES.npz SETTINGS.json OUTPUTS.npz`.

This script runs in py-feat's environment. FACES has `faces` float32 ``[N, 3, S, S]``, SETTINGS a list of
arguments of `HOGLayer`. For item i of the list, OUTPUTS has the features ``features_i`` ``[N, features]`` and
the histograms before block normalization, ``cells_i`` ``[N, cell rows, cell columns, orientations]``.
"""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.speed.pyfeat_functions import load_functions


def main(faces_file: str, settings_file: str, outputs_file: str) -> None:
    """Compute the features and histograms of one file's faces and save them to another file."""
    load_functions()
    hog_layer = importlib.import_module("feat.utils.image_operations").HOGLayer
    faces = torch.from_numpy(np.load(faces_file)["faces"])
    outputs = {}
    for index, settings in enumerate(json.loads(Path(settings_file).read_text())):
        layer = hog_layer(**settings, device="cpu")
        outputs[f"features_{index}"] = layer(faces).numpy()
        outputs[f"cells_{index}"] = layer.orientation_histogram.permute(0, 2, 3, 1).numpy()
    np.savez(outputs_file, **outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
