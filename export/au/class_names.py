"""Names of the classes in py-feat's AU checkpoints; `skops_values.py` reads objects of no other class."""

from typing import Literal

KINDS: dict[str, Literal["xgb", "svm"]] = {
    "__main__.XGBClassifier": "xgb",
    "__main__.SVMClassifier": "svm",
    "feat.au_detectors.StatLearning.SL_test.XGBClassifier": "xgb",
    "feat.au_detectors.StatLearning.SL_test.SVMClassifier": "svm",
}
"""Kind of a checkpoint by py-feat's class. py-feat's files of version 1 name the module ``__main__``."""

SCALER = "sklearn.preprocessing._data.StandardScaler"
PCA = "sklearn.decomposition._pca.PCA"
LINEAR_SVC = "sklearn.svm._classes.LinearSVC"
SVC = "sklearn.svm._classes.SVC"
ISOTONIC = "sklearn.isotonic.IsotonicRegression"
SIGMOID = "sklearn.calibration._SigmoidCalibration"
XGB_CLASSIFIER = "xgboost.sklearn.XGBClassifier"
BOOSTER = "xgboost.core.Booster"

UNUSED = {"xgboost.compat.XGBoostLabelEncoder", "sklearn.preprocessing._label.LabelEncoder"}
"""Objects in classifiers of old releases that predictions do not use."""

OBJECT_CLASSES = {*KINDS, SCALER, PCA, LINEAR_SVC, SVC, ISOTONIC, SIGMOID, XGB_CLASSIFIER, BOOSTER, *UNUSED}
"""Classes whose attributes are read."""
