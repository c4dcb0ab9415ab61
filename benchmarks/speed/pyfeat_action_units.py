"""py-feat's AU classifiers in py-feat's environment; does not import the product's code.

``python pyfeat_action_units.py fit FACES.npz FILE.skops SETTINGS`` fits synthetic classifiers to the faces of
a file and saves them in py-feat's format. ``python pyfeat_action_units.py evaluate FACES.npz FILE.skops
OUTPUTS.npz`` evaluates a checkpoint as `feat.detector.Detector` does.

The synthetic labels are noisy functions of HOG and landmarks. The classifiers therefore have the structure
of real ones, but their outputs say nothing about facial expressions.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xgboost
from sklearn.decomposition import PCA
from sklearn.isotonic import IsotonicRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from skops import io as skops_io
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.speed.pyfeat_functions import load_functions

REGIONS = ("upper", "lower", "full")

AU_NAMES = tuple(f"AU{n}" for n in (1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15, 17, 20, 23, 24, 25, 26, 28, 43))

REGION_OF_AU = {
    "xgb": dict.fromkeys(("AU1", "AU2", "AU7"), "upper")
    | dict.fromkeys(("AU11", "AU14", "AU17", "AU23", "AU24", "AU26"), "lower"),
    "svm": dict.fromkeys(("AU1", "AU4", "AU6"), "upper") | dict.fromkeys(("AU11", "AU12", "AU17"), "lower"),
}
"""Regions that py-feat's `detect_au` uses; the other AUs use "full"."""

HINGE = "AU7"
"""The AU whose published XGBoost model has the objective binary:hinge."""

LANDMARK_WEIGHT = 8
"""Relative frequency of landmarks among the features of a tree.

With 776 components a fifth of the splits then reads a landmark, as in py-feat's AU01 model.
"""

HOG_NOISE = 1e-6
"""Largest change of a HOG value in the comparison of py-feat with itself."""

TREE_INPUTS = 1000

Features = tuple[np.ndarray, np.ndarray]
"""HOG, float32 ``[N, 5408]``, and aligned landmarks, int64 ``[N, 68, 2]``."""


def load_detector(path: str) -> Any:
    """Return the classifiers of a checkpoint as py-feat loads them, with all types trusted."""
    load_functions()
    return skops_io.load(path, trusted=skops_io.get_untrusted_types(file=path))


def hog_features(faces: dict[str, np.ndarray]) -> Features:
    """Return py-feat's HOG and aligned landmarks of `frames` and `landmarks`."""
    face_mask, _ = load_functions()
    frames, points = torch.from_numpy(faces["frames"]), torch.from_numpy(faces["landmarks"])
    parts = [
        face_mask.extract_hog_features_batched(some_frames, some_points.flatten(1) / frames.shape[-1])
        for some_frames, some_points in zip(frames.split(100), points.split(100), strict=True)
    ]
    hog, landmarks = (
        np.concatenate([np.asarray(part) for part in some]) for some in zip(*parts, strict=True)
    )
    return hog, landmarks


def fit(faces_file: str, checkpoint: str, settings: str) -> None:
    """Fit classifiers to the faces and save them.

    `settings` is JSON: `kind` (xgb, svm), `components` (of upper, lower, full), `trees`, `depth`, `seed`,
    optionally `calibrators` (true: isotonic ones for every second AU).
    """
    options = json.loads(settings)
    generator = np.random.default_rng(options["seed"])
    hog, landmarks = hog_features(np.load(faces_file))
    rows = landmarks.reshape(len(landmarks), -1)
    parts, inputs = {}, {}
    for region, components in zip(REGIONS, options["components"], strict=True):
        # Other random subsets per region: the published projections were fitted to other parts of the face.
        subset = generator.choice(len(hog), max(components, round(0.9 * len(hog))), replace=False)
        scaler = StandardScaler().fit(hog[subset].astype(np.float64))
        pca = PCA(components, random_state=options["seed"]).fit(
            scaler.transform(hog[subset].astype(np.float64))
        )
        parts |= {f"scaler_{region}": scaler, f"pca_model_{region}": pca}
        inputs[region] = np.concatenate([pca.transform(scaler.transform(hog)), rows], axis=1)
    classifiers, calibrators = {}, {}
    for index, name in enumerate(AU_NAMES):
        features = inputs[REGION_OF_AU[options["kind"]].get(name, "full")]
        labels = _labels(features, generator)
        if options["kind"] == "svm":
            classifiers[name] = LinearSVC(C=1e-4, max_iter=200, random_state=options["seed"]).fit(
                features, labels
            )
            continue
        # On a busy machine, two threads wait for each other longer than they compute.
        with threadpool_limits(1):
            classifiers[name] = _trees(name, features.shape[1], options).fit(features, labels)
        if options.get("calibrators") and index % 2 == 0:
            probabilities = classifiers[name].predict_proba(features)[:, 1]
            calibrators[name] = IsotonicRegression(out_of_bounds="clip").fit(probabilities, labels)
    module = importlib.import_module("feat.au_detectors.StatLearning.SL_test")
    detector = module.SVMClassifier() if options["kind"] == "svm" else module.XGBClassifier()
    if options.get("calibrators"):
        parts["calibrators"] = calibrators
    detector.load_weights(classifiers=classifiers, **parts)
    skops_io.dump(detector, checkpoint)


def _trees(name: str, inputs: int, options: dict[str, Any]) -> xgboost.XGBClassifier:
    # XGBoost 3.1 and newer estimate a useless intercept for the hinge.
    objective = {"objective": "binary:hinge", "base_score": 0.5} if name == HINGE else {}
    return xgboost.XGBClassifier(
        n_estimators=options["trees"],
        max_depth=options["depth"],
        learning_rate=0.1,
        max_bin=64,
        min_child_weight=0.3,
        colsample_bytree=0.2,
        feature_weights=np.repeat([1, LANDMARK_WEIGHT], [inputs - 136, 136]),
        random_state=options["seed"],
        **objective,
    )


def _labels(features: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw labels 0 and 1 that depend on five components and on distances of ten pairs of landmarks."""
    points = features[:, -136:].reshape(len(features), 68, 2)
    first, second = generator.choice(np.arange(17, 68), (2, 10))
    distances = np.linalg.norm(points[:, first] - points[:, second], axis=2)
    components = features[:, generator.choice(min(20, features.shape[1] - 136), 5, replace=False)]
    causes = np.concatenate([components, distances], axis=1)
    causes = (causes - causes.mean(axis=0)) / (causes.std(axis=0) + 1e-9)
    score = causes @ generator.normal(size=causes.shape[1]) + np.abs(causes[:, 0]) * generator.normal()
    score += 1.5 * score.std() * generator.normal(size=len(score))
    return (score > np.quantile(score, generator.uniform(0.5, 0.8))).astype(int)


def evaluate(faces_file: str, checkpoint: str, outputs_file: str) -> None:
    """Save AU of the faces, the same under `HOG_NOISE`, and the outputs of the trees for given inputs.

    The keys are `HOG` and `ALIGNED_LANDMARKS`, `AU` and `AU_OF_NOISY_HOG` ``[N, 20]``; for XGBoost also
    `inputs/NAME` float32 ``[1000, components + 136]`` and `outputs/NAME` ``[1000]`` of each AU.
    """
    detector = load_detector(checkpoint)
    hog, landmarks = hog_features(np.load(faces_file))
    generator = np.random.default_rng(0)
    noise = generator.uniform(-HOG_NOISE, HOG_NOISE, hog.shape).astype(np.float32)
    noisy = hog + noise * (hog != 0)  # the blank blocks outside the mask are exact
    outputs = {
        "HOG": hog,
        "ALIGNED_LANDMARKS": landmarks,
        "AU": detector.detect_au(hog, [landmarks]),
        "AU_OF_NOISY_HOG": detector.detect_au(noisy, [landmarks]),
    }
    if "XGB" in type(detector).__name__:
        outputs |= _tree_outputs(detector, hog, landmarks, generator)
    np.savez(outputs_file, **outputs)


def _tree_outputs(
    detector: Any, hog: np.ndarray, landmarks: np.ndarray, generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """Evaluate the trees on mixtures of faces; a tenth of the values equal a threshold of their feature."""
    rows = landmarks.reshape(len(landmarks), -1)
    outputs = {}
    for name, classifier in detector.classifiers.items():
        region = REGION_OF_AU["xgb"].get(name, "full")
        scaler, pca = (getattr(detector, f"{part}_{region}") for part in ("scaler", "pca_model"))
        features = detector.pca_transform(hog, scaler, pca, rows).astype(np.float32)
        source = generator.integers(len(features), size=(TREE_INPUTS, features.shape[1]))
        inputs = np.take_along_axis(features, source, axis=0)
        nodes = classifier.get_booster().trees_to_dataframe()
        splits = nodes[nodes.Feature != "Leaf"]
        for feature, values in splits.groupby("Feature").Split:
            column, at_threshold = int(feature[1:]), generator.random(TREE_INPUTS) < 0.1
            thresholds = generator.choice(values, at_threshold.sum())
            # Landmarks are integers.
            inputs[at_threshold, column] = thresholds if column < pca.n_components_ else thresholds.round()
        outputs |= {f"inputs/{name}": inputs, f"outputs/{name}": classifier.predict_proba(inputs)[:, 1]}
    return outputs


if __name__ == "__main__":
    {"fit": fit, "evaluate": evaluate}[sys.argv[1]](*sys.argv[2:])
