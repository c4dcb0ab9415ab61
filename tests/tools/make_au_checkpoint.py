"""A checkpoint of py-feat's AU classifiers, trained on synthetic data, and py-feat's own outputs for it.

`python make_au_checkpoint.py OUT.skops [options]` runs in py-feat's environment and does not import the
project; ``--`` separates the arguments of several checkpoints. It trains scikit-learn's and XGBoost's
estimators on random features, stores them with skops in py-feat's own class, loads the file as py-feat does
and writes OUT.npz:

- HOG float32 [N, F] and ALIGNED_LANDMARKS int64 [N, 68, 2], inputs;
- AU [N, n], the output of py-feat's `detect_au`;
- INPUTS_UPPER, INPUTS_LOWER, INPUTS_FULL, the classifiers' inputs, that is the components and landmarks;
- RAW [N, n], the output of each classifier without its calibrator;
- NAMES, the columns of AU and RAW, for example "AU1".

Importing the package `feat` would load detectors and plotting. An empty package takes its place.
"""

import argparse
import importlib
import importlib.util
import itertools
import sys
import types
from pathlib import Path

import numpy as np
import skops.io
import xgboost
from sklearn.calibration import _SigmoidCalibration
from sklearn.decomposition import PCA
from sklearn.isotonic import IsotonicRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

REGIONS = ("upper", "lower", "full")
HINGE = "AU7"
"""The AU that py-feat trained with the objective binary:hinge."""


def load_classes() -> types.ModuleType:
    """Return py-feat's module with the classes XGBClassifier and SVMClassifier."""
    package = Path(importlib.util.find_spec("feat").origin).parent
    for name in ("feat", "feat.au_detectors", "feat.au_detectors.StatLearning"):
        module = types.ModuleType(name)
        module.__path__ = [str(package.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = module
    return importlib.import_module("feat.au_detectors.StatLearning.SL_test")


class CalibratorWithTransform(_SigmoidCalibration):
    """Platt's calibration with the method that py-feat calls, which scikit-learn's class lacks."""

    def transform(self, probabilities: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities."""
        return self.predict(probabilities)


def make_faces(seed: int, split: str, count: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """Return HOG-like features and landmarks that depend on the same random expressions.

    HOG values are between 0 and 0.3. The first tenth of them is always zero, as in cells outside the face
    mask; StandardScaler then has a scale of 1 and PCA components of 0 there. `seed` determines how features
    depend on expressions; `split` selects the faces.
    """
    population = np.random.default_rng(seed)
    to_hog, to_landmarks = population.normal(size=(24, features)), population.normal(size=(24, 136))
    mean = population.uniform(15, 97, size=136)
    generator = np.random.default_rng([seed, len(split)])
    expressions = generator.normal(size=(count, 24))
    hog = np.abs(expressions @ to_hog * 0.04 + generator.normal(0, 0.03, (count, features)))
    hog = np.minimum(hog, 0.3).astype(np.float32)
    hog[:, : features // 10] = 0
    landmarks = mean + expressions @ to_landmarks * 1.5 + generator.normal(0, 1, (count, 136))
    return hog, landmarks.astype(np.int64).reshape(count, 68, 2)


def fit_projections(options: argparse.Namespace, hog: np.ndarray) -> dict[str, object]:
    """Return `scaler_REGION` and `pca_model_REGION`. The regions differ in faces and components."""
    parts = {}
    for index, region in enumerate(REGIONS):
        scaler = StandardScaler(with_mean=not options.no_mean, with_std=not options.no_std)
        faces = hog[index::4] if len(hog) > 8 * options.components else hog
        scaler.fit(faces)
        components = options.components + (index if options.uneven else 0)
        pca = PCA(components, whiten=options.whiten, svd_solver="randomized", random_state=options.seed)
        parts[f"scaler_{region}"], parts[f"pca_model_{region}"] = scaler, pca.fit(scaler.transform(faces))
    return parts


def make_labels(generator: np.random.Generator, inputs: np.ndarray) -> np.ndarray:
    """Return labels of 0 and 1 that depend on 12 of the inputs."""
    chosen = generator.choice(inputs.shape[1], 12, replace=False)
    values = inputs[:, chosen]
    values = (values - values.mean(axis=0)) / (values.std(axis=0) + 1e-6)
    score = values @ generator.normal(size=12) + values[:, 0] * values[:, 1]
    return (score + generator.normal(0, 0.5, len(score)) > np.quantile(score, 0.6)).astype(np.int64)


def fit_xgb(options: argparse.Namespace, name: str, inputs: np.ndarray, labels: np.ndarray) -> object:
    """Return a fitted XGBClassifier. XGBoost 3.1 and newer estimate a useless intercept for the hinge."""
    objective = "binary:hinge" if name == HINGE else "binary:logistic"
    settings = {"base_score": 0.5} if name == HINGE else {}
    if options.early_stopping:
        settings |= {
            "early_stopping_rounds": 2,
            "eval_metric": "error",
            "num_parallel_tree": 2,
            "subsample": 0.7,
        }
    model = xgboost.XGBClassifier(
        n_estimators=options.trees,
        max_depth=options.depth,
        learning_rate=0.2,
        objective=objective,
        n_jobs=2,
        gamma=options.gamma,
        tree_method=options.tree_method,
        random_state=options.seed,
        **settings,
    )
    half = len(labels) // 2
    if options.early_stopping:
        return model.fit(
            inputs[:half], labels[:half], eval_set=[(inputs[half:], labels[half:])], verbose=False
        )
    return model.fit(inputs, labels)


def fit_svm(options: argparse.Namespace, inputs: np.ndarray, labels: np.ndarray) -> object:
    """Return a fitted LinearSVC or SVC."""
    if options.svc:
        return SVC(kernel="linear", C=1e-4).fit(inputs, labels)
    return LinearSVC(C=1e-3, dual=False, random_state=options.seed).fit(inputs, labels)


def fit_calibrator(options: argparse.Namespace, probabilities: np.ndarray, labels: np.ndarray) -> object:
    """Return a fitted calibrator of the requested kind."""
    if options.calibrators == "sigmoid":
        return _SigmoidCalibration().fit(probabilities, labels)
    return IsotonicRegression(out_of_bounds=options.out_of_bounds).fit(probabilities, labels)


def route(module: types.ModuleType, options: argparse.Namespace, names: list[str]) -> dict[str, str]:
    """Return the region whose inputs py-feat gives to each AU, as its own `detect_au` does."""
    seen = {}

    class Probe:
        def __init__(self, name: str) -> None:
            self.name = name

        def predict_proba(self, inputs: np.ndarray) -> np.ndarray:
            seen[self.name] = REGIONS[int(inputs[0, 0])]
            return np.zeros((1, 2))

        def predict(self, inputs: np.ndarray) -> np.ndarray:
            return self.predict_proba(inputs)[:, 0]

    probed = build_classifier(module, options, {}, {name: Probe(name) for name in names}, names)
    for index, region in enumerate(REGIONS):
        setattr(probed, f"scaler_{region}", None)
        setattr(probed, f"pca_model_{region}", index)
    probed.pca_transform = lambda _frame, _scaler, index, _landmarks: np.full((1, 1), index)
    probed.detect_au(np.zeros((1, 1)), [np.zeros((1, 68, 2))])
    return seen


def build_classifier(
    module: types.ModuleType,
    options: argparse.Namespace,
    parts: dict[str, object],
    classifiers: dict[str, object],
    names: list[str],
    calibrators: dict[str, object] | None = None,
) -> object:
    """Return py-feat's classifier of the requested kind."""
    if options.kind == "svm":
        built = module.SVMClassifier()
        built.load_weights(**parts, classifiers=classifiers)
        return built
    built = module.XGBClassifier()
    built.au_keys = names
    built.load_weights(**parts, classifiers=classifiers, calibrators=calibrators)
    return built


def train(module: types.ModuleType, options: argparse.Namespace) -> object:
    """Train all parts and return py-feat's classifier."""
    generator = np.random.default_rng(options.seed)
    hog, landmarks = make_faces(options.seed, "training", options.training_faces, options.features)
    parts = fit_projections(options, hog)
    inputs = project(parts, hog, landmarks)
    names = options.names or module.XGBClassifier().au_keys
    regions = route(module, options, names)
    classifiers, calibrators = {}, {}
    for name in names:
        rows = inputs[regions[name]]
        labels = make_labels(generator, rows)
        if options.kind == "svm":
            classifiers[name] = fit_svm(options, rows, labels)
            continue
        classifiers[name] = fit_xgb(options, name, rows, labels)
        if options.calibrators != "none" and (name == names[0] or generator.random() < 0.7):
            calibrators[name] = fit_calibrator(options, classifiers[name].predict_proba(rows)[:, 1], labels)
    return build_classifier(module, options, parts, classifiers, names, calibrators or None)


def project(parts: dict[str, object], hog: np.ndarray, landmarks: np.ndarray) -> dict[str, np.ndarray]:
    """Return the classifiers' inputs by region, as py-feat's `pca_transform` computes them."""
    flat = landmarks.reshape(len(landmarks), -1)
    return {
        region: np.concatenate(
            [parts[f"pca_model_{region}"].transform(parts[f"scaler_{region}"].transform(hog)), flat], axis=1
        )
        for region in REGIONS
    }


def compute_reference(
    module: types.ModuleType, options: argparse.Namespace, loaded: object
) -> dict[str, np.ndarray]:
    """Return py-feat's outputs for faces that the training did not see."""
    hog, landmarks = make_faces(options.seed, "test", options.faces, options.features)
    parts = {
        name: getattr(loaded, name) for name in vars(loaded) if name.startswith(("scaler_", "pca_model_"))
    }
    inputs = project(parts, hog, landmarks)
    names = (
        sorted(loaded.classifiers, key=lambda name: int(name[2:]))
        if options.kind == "svm"
        else loaded.au_keys
    )
    regions = route(module, options, names)
    raw = [
        loaded.classifiers[name].predict(inputs[regions[name]])
        if options.kind == "svm"
        else loaded.classifiers[name].predict_proba(inputs[regions[name]])[:, 1]
        for name in names
    ]
    for calibrator in (getattr(loaded, "calibrators", None) or {}).values():
        if isinstance(calibrator, _SigmoidCalibration):
            calibrator.__class__ = CalibratorWithTransform
    return {
        "HOG": hog,
        "ALIGNED_LANDMARKS": landmarks,
        "AU": loaded.detect_au(hog, [landmarks]),
        "RAW": np.stack(raw, axis=1),
        "NAMES": np.array(names),
        **{f"INPUTS_{region.upper()}": values for region, values in inputs.items()},
    }


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Return the options of one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT.skops")
    parser.add_argument("--kind", choices=["xgb", "svm"], default="xgb")
    parser.add_argument("--names", nargs="*", metavar="AU", help="the AUs (default: py-feat's 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--features", type=int, default=5408, help="length of HOG")
    parser.add_argument("--components", type=int, default=12, help="PCA components of each region")
    parser.add_argument("--uneven", action="store_true", help="1 and 2 components more for lower and full")
    parser.add_argument("--whiten", action="store_true")
    parser.add_argument("--no-mean", action="store_true", help="StandardScaler(with_mean=False)")
    parser.add_argument("--no-std", action="store_true", help="StandardScaler(with_std=False)")
    parser.add_argument("--trees", type=int, default=8)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--gamma", type=float, default=0.0)
    parser.add_argument("--tree-method", choices=["hist", "exact"], default="hist")
    parser.add_argument("--early-stopping", action="store_true", help="with two parallel trees")
    parser.add_argument("--svc", action="store_true", help="SVC with a linear kernel instead of LinearSVC")
    parser.add_argument("--calibrators", choices=["none", "isotonic", "sigmoid"], default="none")
    parser.add_argument("--out-of-bounds", choices=["clip", "nan", "raise"], default="clip")
    parser.add_argument("--training-faces", type=int, default=400)
    parser.add_argument("--faces", type=int, default=64, help="faces of the reference")
    parser.add_argument("--compress", action="store_true", help="deflate the members")
    parser.add_argument(
        "--main-module", action="store_true", help="name the class in __main__, as py-feat's v1 files"
    )
    return parser.parse_args(arguments)


def make_checkpoint(module: types.ModuleType, options: argparse.Namespace) -> None:
    """Write a checkpoint and its reference."""
    trained = train(module, options)
    trained_class = type(trained)
    home = trained_class.__module__
    if options.main_module:
        trained_class.__module__ = "__main__"
        setattr(sys.modules["__main__"], trained_class.__name__, trained_class)
    compression = {"compression": 8, "compresslevel": 6} if options.compress else {}
    skops.io.dump(trained, options.out, **compression)
    trained_class.__module__ = home
    loaded = skops.io.load(options.out, trusted=skops.io.get_untrusted_types(file=options.out))
    np.savez(options.out.with_suffix(".npz"), **compute_reference(module, options, loaded))


def main() -> None:
    """Make the checkpoints of the command line."""
    groups = [list(group) for is_end, group in itertools.groupby(sys.argv[1:], "--".__eq__) if not is_end]
    checkpoints = [parse_arguments(group) for group in groups or [[]]]
    module = load_classes()
    for options in checkpoints:
        make_checkpoint(module, options)


if __name__ == "__main__":
    main()
