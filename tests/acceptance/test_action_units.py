"""Action units, where the server has them: the models `au` and `action_units` of a second repository."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferRequestedOutput
from tritonclient.utils import InferenceServerException

from export.au.checkpoint import load_au_checkpoint
from export.au.reference import reference_action_units
from tests.acceptance.conftest import AssertAgree
from tests.acceptance.target import AU_ENSEMBLE, ServerInfo, frame_inputs, infer
from tests.acceptance.test_invalid_faces import check_alternating_valid_and_invalid
from tests.support.face_data import photo_faces
from tests.support.interface import (
    ALIGNED_LANDMARKS,
    ENSEMBLE_OUTPUTS,
    HOG,
    INTERFACE,
    MAX_BATCH_SIZE,
)
from tests.support.raw_requests import tensor_input
from triton_face_client import FaceFeatureClient

AU_OUTPUTS = ("AU", *ENSEMBLE_OUTPUTS)
SUBSETS = [
    subset for count in range(1, len(AU_OUTPUTS) + 1) for subset in itertools.combinations(AU_OUTPUTS, count)
]

AU_TOLERANCE = 1e-5
MAX_UNEQUAL_FRACTION = 0.005
"""Fraction of AU values that may differ by more than `AU_TOLERANCE`: near a threshold, rounding in float32
sends a face to another branch of a tree. The exporter allows 0.001 on more values."""

OTHER_CHECKPOINT = "does the server use another checkpoint? name it with --au-weights FILE.skops"


@pytest.fixture
def names(server_info: ServerInfo) -> tuple[str, ...]:
    """Return the names of the columns of AU; skip the test on a server without action units."""
    if not server_info.action_units:
        pytest.skip("not served")
    return server_info.action_units


@pytest.mark.checks("Action units: the interface, and the names of the columns")
def test_metadata_of_action_units_equals_the_interface(client: FaceFeatureClient, names: tuple[str, ...]):
    au = ("AU", "TYPE_FP32", [len(names)])
    inputs, outputs = INTERFACE["ensemble"]
    hog_out, landmarks_out = (("HOG_OUT", *HOG[1:]), ("ALIGNED_LANDMARKS_OUT", *ALIGNED_LANDMARKS[1:]))
    expected = {
        "au": ([HOG, ALIGNED_LANDMARKS], [au, hog_out, landmarks_out]),
        AU_ENSEMBLE: (inputs, [au, *outputs]),
    }
    for model, tensors in expected.items():
        metadata = client.connection.get_model_metadata(model)
        for configured, described in zip(tensors, (metadata.inputs, metadata.outputs), strict=True):
            assert [(tensor.name, f"TYPE_{tensor.datatype}", list(tensor.shape)) for tensor in described] == [
                (name, kind, [-1, *dims]) for name, kind, dims in configured
            ]


@pytest.mark.checks("Action units: the interface, and the names of the columns")
def test_classification_names_the_columns(client: FaceFeatureClient, names: tuple[str, ...]):
    """As in the client's README, for programs without this client."""
    faces = frame_inputs(*photo_faces(3, 680))
    rows = infer(client, AU_ENSEMBLE, faces, ["AU"])["AU"]
    classified = client.connection.infer(
        AU_ENSEMBLE,
        [tensor_input(name, values) for name, values in faces.items()],
        outputs=[InferRequestedOutput("AU", class_count=len(names))],
    ).as_numpy("AU")
    for row, classes in zip(rows, classified, strict=True):
        found = {}
        for item in classes:
            value, column, name = item.decode().split(":")
            assert name == names[int(column)]
            found[name] = float(value)
        np.testing.assert_allclose([found[name] for name in names], row, atol=1e-6)


@pytest.mark.checks("Action units: a face alone gets the values of a batch; UINT8 as FP32")
@pytest.mark.usefixtures("names")
def test_action_units_are_the_same_alone_and_in_a_batch(client: FaceFeatureClient, assert_agree: AssertAgree):
    frames, landmarks = photo_faces(MAX_BATCH_SIZE, 681)
    uint8_frames = np.round(255 * frames).astype(np.uint8)
    fp32_frames = uint8_frames.astype(np.float32) / np.float32(255)
    together = infer(client, AU_ENSEMBLE, frame_inputs(uint8_frames, landmarks), AU_OUTPUTS)
    fp32_response = infer(client, AU_ENSEMBLE, frame_inputs(fp32_frames, landmarks), AU_OUTPUTS)
    assert_agree(fp32_response, together)
    assert len(np.unique(together["AU"], axis=0)) > 1
    for face in range(0, MAX_BATCH_SIZE, 9):
        row = slice(face, face + 1)
        alone = infer(client, AU_ENSEMBLE, frame_inputs(uint8_frames[row], landmarks[row]), AU_OUTPUTS)
        assert_agree(alone, {name: rows[row] for name, rows in together.items()})


@pytest.mark.checks("Action units: all 63 subsets of outputs: the same results, equal to those of ensemble")
@pytest.mark.usefixtures("names")
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_every_subset_with_action_units_has_the_same_results(
    client: FaceFeatureClient, assert_agree: AssertAgree, dtype: type
):
    frames, landmarks = photo_faces(3, 682)
    faces = frame_inputs((255 * frames).astype(np.uint8) if dtype is np.uint8 else frames, landmarks)
    expected = infer(client, "ensemble", faces, ENSEMBLE_OUTPUTS)
    expected |= infer(client, AU_ENSEMBLE, faces, ["AU"])
    for subset in SUBSETS:
        assert_agree(infer(client, AU_ENSEMBLE, faces, subset), {name: expected[name] for name in subset})


@pytest.mark.checks("AU equals a NumPy evaluation of the checkpoint, 99.5 % of the values within 1e-5")
def test_action_units_equal_the_numpy_evaluation(
    request: pytest.FixtureRequest, client: FaceFeatureClient, names: tuple[str, ...]
):
    """The evaluation uses the server's HOG features, so differences of hog do not count."""
    weights: Path | None = request.config.getoption("au_weights")
    if weights is None:
        pytest.skip("--au-weights: no checkpoint to compare with")
    checkpoint = load_au_checkpoint(weights)
    assert [unit.name for unit in checkpoint.units] == list(names), OTHER_CHECKPOINT
    faces = frame_inputs(*photo_faces(MAX_BATCH_SIZE, 684))
    response = infer(client, AU_ENSEMBLE, faces, ["AU", "HOG", "ALIGNED_LANDMARKS"])
    expected = reference_action_units(checkpoint, response["HOG"], response["ALIGNED_LANDMARKS"])
    unequal = np.abs(response["AU"] - expected) > AU_TOLERANCE
    assert unequal.mean() <= MAX_UNEQUAL_FRACTION, (
        f"{OTHER_CHECKPOINT}; faces, columns: {np.argwhere(unequal)}"
    )


@pytest.mark.checks("Action units: an invalid face is rejected with its reason and affects no other request")
@pytest.mark.usefixtures("names")
def test_invalid_face_is_rejected_by_action_units(client: FaceFeatureClient, assert_agree: AssertAgree):
    frames, landmarks = photo_faces(4, 683)
    landmarks[2] = 40
    with pytest.raises(InferenceServerException, match="face 2: all landmarks are equal") as caught:
        infer(client, AU_ENSEMBLE, frame_inputs(frames, landmarks), AU_OUTPUTS)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    check_alternating_valid_and_invalid(
        lambda tensors: infer(client, AU_ENSEMBLE, tensors, ["AU", "POSE"]), assert_agree
    )
