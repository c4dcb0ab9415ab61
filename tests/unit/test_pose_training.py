"""The pose MLP's data, training, files and shipped checkpoint, against separate computations."""

import argparse
import csv
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation
from scipy.special import erf

from export.errors import ExportError
from export.pose.checkpoint import load_pose_checkpoint
from export.pose.training import baseline, camera, dataset, evaluate, head, network, noise, train
from export.pose.training.faces_file import ANGLE_COLUMNS, LANDMARK_COLUMNS, read_faces

MIRROR_PAIRS = [
    *((i, 16 - i) for i in range(8)),
    *((17 + i, 26 - i) for i in range(5)),
    (31, 35), (32, 34),
    (36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46),
    (48, 54), (49, 53), (50, 52), (55, 59), (56, 58), (60, 64), (61, 63), (65, 67),
]  # fmt: skip


def generator(seed: int = 3) -> torch.Generator:
    """Return a seeded generator."""
    return torch.Generator().manual_seed(seed)


def mean_landmarks() -> np.ndarray:
    """Return the mean head's 68 points, centred."""
    points = head.mean_mesh()[list(head.LANDMARK_VERTICES)]
    return points - points.mean(axis=0)


def render(angles_deg: tuple[float, float, float], distance: float | None) -> np.ndarray:
    """Render the mean head with scipy's rotations; no distance means orthographic."""
    points = Rotation.from_euler("xyz", angles_deg, degrees=True).apply(mean_landmarks())
    if distance is None:
        return points[:, :2]
    return points[:, :2] / (points[:, 2:] + distance)


def command(module: ModuleType, *arguments: object) -> None:
    """Run a command of `module` as the command line would."""
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    module.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture(scope="module")
def shipped() -> network.PoseNetwork:
    """Return the network of the shipped checkpoint."""
    return network.load_network(evaluate.DEFAULT_CHECKPOINT)


@pytest.fixture(scope="module")
def held_out() -> tuple[np.ndarray, np.ndarray]:
    """Return held-out synthetic faces: landmarks and angles in degrees."""
    return evaluate.synthetic_faces(4000)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return a copy of the shipped checkpoint that a test may damage."""
    for suffix in (".safetensors", ".json"):
        source = evaluate.DEFAULT_CHECKPOINT.with_suffix(suffix)
        (tmp_path / "copy").with_suffix(suffix).write_bytes(source.read_bytes())
    return tmp_path / "copy.safetensors"


# --- head ---------------------------------------------------------------------------------------


def test_the_mesh_is_symmetric_and_faces_the_camera() -> None:
    mesh = head.mean_mesh()
    assert mesh.shape == (468, 3)
    reflected = mesh[head._mirror_vertices(mesh)] * [-1, 1, 1]
    np.testing.assert_allclose(reflected, mesh, atol=1e-5)
    points = mesh[list(head.LANDMARK_VERTICES)]
    assert points[:, 2].argmin() == 30, "the nose tip is nearest to the camera"
    assert points[8, 1] > points[30, 1] > points[27, 1], "y points down"
    assert points[36, 0] < 0 < points[45, 0], "landmark 36 is on the image's left"


def test_the_landmark_mirror_is_the_specified_one() -> None:
    expected = list(range(68))
    for left, right in MIRROR_PAIRS:
        expected[left], expected[right] = right, left
    assert list(head.MIRRORED_LANDMARK) == expected
    points = mean_landmarks()
    np.testing.assert_allclose(points[expected] * [-1, 1, 1], points, atol=1e-5)


def test_deformed_heads_are_turned_back_by_the_fit_of_the_whole_mesh() -> None:
    mesh, model = head.mean_mesh(), head.head_model()
    modes = np.concatenate([head._identity_modes(mesh), head._expression_modes(mesh)])
    weights = dataset._sample_weights(model, 5, generator())
    deformed = model.deform(weights).numpy()
    for row, result in zip(weights.numpy(), deformed, strict=True):
        whole = mesh + np.einsum("m,mvc->vc", row.astype(np.float64), modes)
        fit, _ = Rotation.align_vectors(whole - whole.mean(axis=0), mesh - mesh.mean(axis=0))
        assert fit.magnitude() > 1e-3, "the deformation must turn the fit for this to test anything"
        expected = fit.inv().apply(whole - whole.mean(axis=0)) + mesh.mean(axis=0)
        np.testing.assert_allclose(result[:68], expected[list(head.LANDMARK_VERTICES)], atol=2e-4)


def test_expressions_move_what_they_name() -> None:
    model = head.head_model()
    neutral = torch.zeros(1, len(model.point_modes))

    def moved(name: str) -> np.ndarray:
        weights = neutral.clone()
        weights[0, model.identity_modes + head.EXPRESSIONS.index(name)] = 1.0
        return (model.deform(weights) - model.deform(neutral))[0, :68].numpy()

    opened = moved("jaw_open")
    assert opened[66, 1] - opened[62, 1] > 1.0, "the lips part"
    assert opened[8, 1] > 0.5, "the chin drops"
    smile = moved("smile")
    assert smile[54, 0] > 0.3, "the corners part"
    assert smile[48, 0] < -0.3, "the corners part"
    assert smile[48, 1] < smile[57, 1] - 0.3, "the corners rise"
    assert moved("brow_raise")[19, 1] < -0.4
    closed = moved("eyes_close")
    assert closed[37, 1] > 0.1 > -0.02 > closed[41, 1], "the lids meet"


# --- camera -------------------------------------------------------------------------------------


def test_projection_matches_scipy_rotations_and_a_pinhole() -> None:
    angles = np.array([[0.3, -0.8, 0.5], [-1.0, 1.2, -0.9]])
    points = torch.from_numpy(np.stack([head.mean_mesh()[list(head.LANDMARK_VERTICES)]] * 2))
    distances = torch.tensor([40.0, 300.0], dtype=torch.float64)
    rotations = camera.rotation_matrices(torch.from_numpy(angles))
    placed, translations = camera.place(points, rotations, distances)
    projected = camera.project(placed).numpy()
    for face in range(2):
        rotation = Rotation.from_euler("xyz", angles[face])
        np.testing.assert_allclose(rotations[face].numpy(), rotation.as_matrix(), atol=1e-12)
        seen = rotation.apply(points[face].numpy()) + translations[face].numpy()
        np.testing.assert_allclose(
            seen.mean(axis=0), [0, 0, distances[face]], atol=1e-9, err_msg="centroid on the axis"
        )
        np.testing.assert_allclose(projected[face], seen[:, :2] / seen[:, 2:], atol=1e-12)


def test_positive_angles_turn_the_way_the_frame_says() -> None:
    def nose(angles: tuple[float, float, float]) -> np.ndarray:
        points = render(angles, 60.0)
        return points[30] - (points[36] + points[45]) / 2

    assert nose((20, 0, 0))[1] > nose((0, 0, 0))[1], "raw Pitch > 0 nods down"
    assert nose((0, 20, 0))[0] < -0.01, "raw Roll > 0 turns to the subject's right, image left"
    tilted = render((0, 0, 20), 60.0)
    assert tilted[45, 1] > tilted[36, 1], "raw Yaw > 0 tilts clockwise in the image"


def test_poses_stay_within_limits_and_are_denser_near_frontal() -> None:
    degrees = camera.sample_angles(20000, generator()).rad2deg().abs()
    assert (degrees.amax(dim=0) <= torch.tensor([60.0, 75.0, 60.0]) + 1e-3).all()
    assert (degrees.amax(dim=0) > torch.tensor([58.0, 73.0, 58.0])).all()
    assert (degrees < 15).float().mean(dim=0).min() > 0.3
    uniform = camera.sample_angles(20000, generator(), frontal_share=0.0).rad2deg().abs()
    np.testing.assert_allclose((uniform[:, 1] < 37.5).float().mean(), 0.5, atol=0.02)
    distances = camera.sample_distances(20000, generator())
    assert distances.min() >= camera.NEAR
    assert distances.max() <= camera.FAR * 1.001
    assert distances.min() < 1.05 * camera.NEAR
    assert distances.max() > 0.8 * camera.FAR


# --- noise --------------------------------------------------------------------------------------


def test_the_far_contour_slides_outwards_and_the_rest_stays() -> None:
    points = head.head_model().points[None].repeat(2, 1, 1)
    angles = torch.tensor([[0.0, 1.0, 0.2], [0.0, 1.0, 0.2]])
    rotations = camera.rotation_matrices(angles)
    placed, _ = camera.place(points, rotations, torch.full((2,), 80.0))
    projected = camera.project(placed)
    slid = noise.slide_contour(projected, rotations[:, :2, 0], torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(slid[0], projected[0, :68])
    outwards = (slid[1] - projected[1, :68]) @ rotations[1, :2, 0]
    size = (projected[1, 36] - projected[1, 45]).norm()
    assert outwards[:8].min() < -0.05 * size, "the head turned to the image's left hides that side"
    assert (outwards[:8] <= 1e-6).all()
    torch.testing.assert_close(outwards[9:17], torch.zeros(8))
    torch.testing.assert_close(slid[1, 17:], projected[1, 17:68])
    torch.testing.assert_close(slid[1, 8], projected[1, 8])


def test_landmarker_noise_has_the_stated_size_and_is_reproducible() -> None:
    face = torch.from_numpy(render((0, 0, 0), None)).float().repeat(4000, 1, 1)
    eye = (face[:, 36] - face[:, 45]).norm(dim=-1)
    moved = noise.disturb(face, eye, generator())
    assert torch.equal(moved, noise.disturb(face, eye, generator()))
    spread = ((moved - face) / eye[:, None, None]).std(dim=0)
    variance = noise.JITTER**2 / 5 + noise.POINT_HABIT**2 + noise.REGION_BIAS**2
    expected = torch.full((51, 2), variance**0.5)
    torch.testing.assert_close(spread[17:], expected, rtol=0.1, atol=0.0)
    assert (spread[:17].norm(dim=1) > 0.02).all(), "the contour wanders and is pulled"


def test_points_wander_along_the_contour() -> None:
    line = torch.stack([torch.arange(17.0), torch.zeros(17)], dim=1).repeat(3000, 1, 1)
    moved = noise._wander(line, torch.randn(3000, 17, generator=generator()))
    assert moved[..., 1].abs().max() == 0.0
    offset = moved[..., 0] - line[..., 0]
    assert 0.25 < offset[:, :5].std() < 0.55
    correlation = torch.corrcoef(offset.T)
    assert correlation[3, 4] > 0.8
    assert correlation[3, 13] < -0.4


# --- dataset ------------------------------------------------------------------------------------


def test_network_input_is_centred_scaled_and_axis_major() -> None:
    face = render((5, 20, -10), 50.0)
    centred = face - face.mean(axis=0)
    centred = centred / np.linalg.norm(face[36] - face[45])
    expected = np.concatenate([centred[:, 0], centred[:, 1]])
    for landmarks in (face, face * 1234.5 + [300.0, -20.0]):
        got = dataset.network_input(torch.from_numpy(landmarks)[None])[0].numpy()
        np.testing.assert_allclose(got, expected, atol=1e-9)


def test_a_mirrored_face_is_the_mirrored_pose_rendered() -> None:
    landmarks = torch.from_numpy(render((10, 30, -20), 50.0))[None]
    poses = torch.tensor([[10.0, 30.0, -20.0, 1.0, 2.0, 3.0]])
    both = dataset.with_mirrored(dataset.Faces(landmarks.float(), poses))
    np.testing.assert_allclose(both.landmarks[1], render((10, -30, 20), 50.0), atol=1e-6)
    assert both.poses[1].tolist() == [10.0, -30.0, 20.0, -1.0, 2.0, 3.0]


def test_faces_follow_from_the_generator_alone() -> None:
    first, again = (dataset.sample_faces(64, generator()) for _ in range(2))
    other = dataset.sample_faces(64, generator(4))
    assert torch.equal(first.landmarks, again.landmarks)
    assert torch.equal(first.poses, again.poses)
    assert not torch.equal(first.poses, other.poses)
    assert torch.isfinite(first.landmarks).all()
    assert (first.poses[:, 5] > 20).all(), "Z is in front of the camera"


# --- baseline -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "distance"), [("procrustes", None), ("pnp", 35.0)])
def test_the_baseline_recovers_the_mean_head(method: str, distance: float | None) -> None:
    poses = [(0, 0, 0), (25, -40, 30), (-50, 70, -55), (55, -10, 58)]
    faces = np.stack([render(pose, distance) * 700 + 300 for pose in poses])
    estimated = np.degrees(baseline.baseline_angles(faces, method))
    np.testing.assert_allclose(estimated, poses, atol=0.02)


def test_the_baseline_reaches_scipys_least_squares(
    held_out: tuple[np.ndarray, np.ndarray],
) -> None:
    model = mean_landmarks()
    faces = held_out[0][:12]
    ours = baseline.baseline_angles(faces)

    def best_cost(face: np.ndarray, angles: np.ndarray, free: bool) -> float:
        target = face - face.mean(axis=0)
        target = target / np.sqrt((target**2).sum(axis=1).mean())

        def residuals(parameters: np.ndarray) -> np.ndarray:
            rotation = Rotation.from_euler("xyz", parameters[3:] if free else angles)
            seen = np.exp(parameters[0]) * rotation.apply(model)[:, :2] + parameters[1:3]
            return (seen - target).ravel()

        start = np.array([-1.8, 0.0, 0.0, *(angles if free else ())])
        return least_squares(residuals, start, method="lm").cost

    for face, angles in zip(faces, ours, strict=True):
        assert best_cost(face, angles, False) <= best_cost(face, angles, True) + 1e-6


# --- training and checkpoints -------------------------------------------------------------------


def test_training_is_reproducible_and_learns() -> None:
    first = train.train(steps=60, seed=1, faces_per_step=128)
    again = train.train(steps=60, seed=1, faces_per_step=128)
    other = train.train(steps=1, seed=2, faces_per_step=128)
    for left, right in zip(first.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(left, right)
    assert not torch.equal(next(first.network.parameters()), next(other.network.parameters()))
    assert first.facts["held_out_mae_degrees"] == again.facts["held_out_mae_degrees"]
    learned, untrained = (sum(outcome.facts["held_out_mae_degrees"].values()) for outcome in (first, other))
    assert learned < 0.5 * untrained
    assert first.facts["best_step"] == first.facts["steps"] == 60


def test_training_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train.train(steps=1, seed=9, faces_per_step=8)
    assert torch.equal(torch.rand(3), expected)


def forward(weights: Path, inputs: np.ndarray) -> np.ndarray:
    """Compute a checkpoint's pose from its files alone, in numpy float64."""
    tensors = {key: value.astype(np.float64) for key, value in load_file(weights).items()}
    statistics = json.loads(weights.with_suffix(".json").read_text())["architecture"]
    normalised = tensors.get("net.1.weight", np.empty((0, 0))).ndim == 1
    stride, values = (4, inputs) if normalised else (3, inputs)
    count = len(statistics["hidden"])
    for layer in range(count):
        name = f"net.{layer * stride}"
        values = values @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]
        if normalised:
            name = f"net.{layer * stride + 1}"
            values = values - values.mean(axis=1, keepdims=True)
            values = values / np.sqrt((values**2).mean(axis=1, keepdims=True) + 1e-5)
            values = values * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]
            values = 0.5 * values * (1 + erf(values / np.sqrt(2)))
        else:
            values = np.maximum(values, 0)
    name = f"net.{count * stride}"
    values = values @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]
    normalisation = statistics["output_normalization"]
    return values * np.array(normalisation["std"]) + np.array(normalisation["mean"])


def write_v1(weights: Path) -> None:
    """Write a random checkpoint of layout v1."""
    random = np.random.default_rng(2)
    widths = [136, 256, 128, 64, 6]
    tensors = {}
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        scale = 1 / np.sqrt(inputs)
        tensors[f"net.{3 * layer}.weight"] = random.normal(scale=scale, size=(outputs, inputs))
        tensors[f"net.{3 * layer}.bias"] = random.normal(size=outputs)
    save_file({key: value.astype(np.float32) for key, value in tensors.items()}, weights)
    statistics = {"mean": [0.1, 0.2, 0.3, 4, 5, 60], "std": [0.4, 0.5, 0.6, 1, 2, 30]}
    architecture = {"hidden": widths[1:-1], "dropout": 0.1, "output_normalization": statistics}
    weights.with_suffix(".json").write_text(json.dumps({"architecture": architecture}))


@pytest.mark.parametrize("layout", ["v1", "v2"])
def test_networks_compute_what_their_files_say(layout: str, tmp_path: Path) -> None:
    weights = tmp_path / "pose.safetensors"
    if layout == "v1":
        write_v1(weights)
    else:
        command(train, "--out", weights, "--steps", 2, "--seed", 3)
    assert load_pose_checkpoint(weights).layout == layout
    landmarks = np.stack([render((0, 10, 5), 50.0), render((-30, 60, 40), 50.0)]) * 500 + 250
    centred = landmarks - landmarks.mean(axis=1, keepdims=True)
    size = np.linalg.norm(landmarks[:, 36] - landmarks[:, 45], axis=1)
    inputs = (centred / size[:, None, None]).transpose(0, 2, 1).reshape(2, 136)
    got = network.estimate(network.load_network(weights), landmarks)
    np.testing.assert_allclose(got, forward(weights, inputs), atol=2e-4, rtol=1e-5)


def test_train_pose_writes_the_specified_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "new" / "pose.safetensors"
    command(train, "--out", weights, "--steps", 2, "--seed", 7)
    assert sorted(path.name for path in weights.parent.iterdir()) == [
        "pose.json",
        "pose.safetensors",
    ]
    shapes = {key: value.shape for key, value in load_file(weights).items()}
    widths = [136, 512, 256, 128]
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        assert shapes.pop(f"net.{4 * layer}.weight") == (outputs, inputs)
        for name in (f"{4 * layer}.bias", f"{4 * layer + 1}.weight", f"{4 * layer + 1}.bias"):
            assert shapes.pop(f"net.{name}") == (outputs,)
    assert shapes == {"net.12.weight": (6, 128), "net.12.bias": (6,)}
    description = json.loads(weights.with_suffix(".json").read_text())
    assert description["architecture"]["hidden"] == widths[1:]
    assert description["training"]["seed"] == 7
    assert description["training"]["steps"] == 2
    assert "held-out MAE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "pose.bin"], "--out must end in .safetensors"),
        (["--out", "pose.safetensors", "--steps", "0"], "--steps must be at least 1"),
        (["--out", "pose.safetensors", "--threads", "0"], "--threads must be at least 1"),
    ],
)
def test_train_pose_refuses_bad_options(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match=message):
        command(train, *arguments)
    assert not list(tmp_path.iterdir())


def test_a_diverged_network_is_not_saved(tmp_path: Path) -> None:
    weights = tmp_path / "pose.safetensors"
    weights.write_bytes(b"old")
    broken = network.new_network(torch.zeros(6), torch.ones(6))
    with torch.no_grad():
        broken.net[4].weight[3, 5] = torch.nan
    with pytest.raises(ExportError, match="not finite"):
        network.save_network(broken, weights, {})
    assert [path.name for path in tmp_path.iterdir()] == ["pose.safetensors"]
    assert weights.read_bytes() == b"old"


def test_an_unwritable_place_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    untrained = network.new_network(torch.zeros(6), torch.ones(6))
    with pytest.raises(ExportError, match="file/pose.safetensors"):
        network.save_network(untrained, tmp_path / "file" / "pose.safetensors", {})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_train_pose_finds_an_unwritable_place_before_it_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ExportError, match="file/pose.safetensors"):
        command(train, "--out", tmp_path / "file" / "pose.safetensors", "--steps", 1)
    assert "training" not in capsys.readouterr().err


def edit_json(weights: Path, change: Callable[[dict], None]) -> None:
    """Change the `architecture` of a checkpoint's description."""
    path = weights.with_suffix(".json")
    description = json.loads(path.read_text())
    change(description["architecture"])
    path.write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda a: a["output_normalization"].pop("std"), "copy.json"),
        (lambda a: a["output_normalization"].update(mean=[0, 0, float("nan"), 0, 0, 0]), "mean"),
        (lambda a: a["output_normalization"].update(std=[1, 1, 1]), "std"),
        (lambda a: a.update(hidden=[512, 256, 64]), "copy.safetensors"),
    ],
)
def test_evaluate_pose_refuses_a_damaged_checkpoint(
    change: Callable[[dict], None], named: str, checkpoint: Path, tmp_path: Path
) -> None:
    edit_json(checkpoint, change)
    plot = tmp_path / "plot.png"
    with pytest.raises(ExportError, match=named):
        command(evaluate, "--weights", checkpoint, "--plot", plot)
    assert not plot.exists()


def test_evaluate_pose_refuses_a_truncated_checkpoint(checkpoint: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(ExportError, match="copy.safetensors"):
        command(evaluate, "--weights", checkpoint)


# --- files of faces -----------------------------------------------------------------------------


def write_csv(path: Path, landmarks: np.ndarray, angles: np.ndarray) -> None:
    """Write faces in the documented CSV layout, with a column that is not needed."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", *LANDMARK_COLUMNS, *ANGLE_COLUMNS])
        for face, angle in zip(landmarks, angles, strict=True):
            writer.writerow(["someone", *face[:, 0], *face[:, 1], *angle])


@pytest.fixture
def faces() -> tuple[np.ndarray, np.ndarray]:
    """Return three faces and their angles in degrees."""
    angles = np.array([[0.0, 0.0, 0.0], [10.0, -40.0, 5.0], [-20.0, 66.0, 30.0]])
    return np.stack([render(tuple(row), 60.0) * 400 + 200 for row in angles]), angles


def test_both_file_layouts_are_read_back(tmp_path: Path, faces: tuple[np.ndarray, np.ndarray]) -> None:
    write_csv(tmp_path / "faces.csv", *faces)
    np.savez(tmp_path / "faces.npz", landmarks=faces[0], angles_deg=faces[1])
    for name in ("faces.csv", "faces.npz"):
        landmarks, angles = read_faces(tmp_path / name)
        np.testing.assert_allclose(landmarks, faces[0], rtol=1e-12)
        np.testing.assert_allclose(angles, faces[1], rtol=1e-12)


@pytest.mark.parametrize(
    ("face", "point", "value", "message"),
    [
        (1, 7, np.nan, r"face 1 has a non-finite landmark \(point 7\)"),
        (2, 0, np.inf, r"face 2 has a non-finite landmark \(point 0\)"),
        (0, 36, None, "face 0 has no eye distance"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".npz"])
def test_a_face_without_a_pose_is_named(
    suffix: str,
    face: int,
    point: int,
    value: float | None,
    message: str,
    tmp_path: Path,
    faces: tuple[np.ndarray, np.ndarray],
) -> None:
    landmarks, angles = faces
    landmarks[face, point] = landmarks[face, 45] if value is None else value
    path = tmp_path / f"faces{suffix}"
    if suffix == ".csv":
        write_csv(path, landmarks, angles)
    else:
        np.savez(path, landmarks=landmarks, angles_deg=angles)
    plot = tmp_path / "plot.png"
    plot.write_bytes(b"old")
    with pytest.raises(ExportError, match=f"faces{suffix}.*{message}"):
        command(evaluate, "--faces", path, "--synthetic", 0, "--plot", plot)
    assert plot.read_bytes() == b"old"
    assert sorted(item.name for item in tmp_path.iterdir()) == [path.name, "plot.png"]


def test_a_non_finite_reference_angle_is_named(tmp_path: Path, faces: tuple[np.ndarray, np.ndarray]) -> None:
    faces[1][2, 1] = np.inf
    np.savez(tmp_path / "faces.npz", landmarks=faces[0], angles_deg=faces[1])
    with pytest.raises(ExportError, match="face 2 has a non-finite reference angle"):
        read_faces(tmp_path / "faces.npz")


HEADER = ",".join((*LANDMARK_COLUMNS, *ANGLE_COLUMNS))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks 139 columns"),
        (HEADER + "\n", "holds no face"),
        (HEADER.replace("y_12,", "") + "\n" + ",".join(["1"] * 138), "lacks 1 columns: y_12"),
        (HEADER + "\n" + ",".join(["1"] * 50), "face 0 has no number in column x_50"),
        (HEADER + "\n" + ",".join(["one"] * 139), "face 0 has no number in column x_0: 'one'"),
    ],
)
def test_bad_csv_files_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "faces.csv"
    path.write_text(text)
    with pytest.raises(ExportError, match=f"faces.csv.*{message}"):
        read_faces(path)


def test_bad_npz_files_are_named(tmp_path: Path, faces: tuple[np.ndarray, np.ndarray]) -> None:
    path = tmp_path / "faces.npz"
    np.savez(path, landmarks=faces[0])
    with pytest.raises(ExportError, match="faces.npz needs the arrays"):
        read_faces(path)
    np.savez(path, landmarks=faces[0][:, :67], angles_deg=faces[1])
    with pytest.raises(ExportError, match=r"landmarks must be \[N, 68, 2\]"):
        read_faces(path)
    np.savez(path, landmarks=faces[0][:0], angles_deg=faces[1][:0])
    with pytest.raises(ExportError, match="faces.npz holds no face"):
        read_faces(path)
    np.savez(path, landmarks=faces[0], angles_deg=faces[1])
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ExportError, match="faces.npz is not a whole NPZ"):
        read_faces(path)
    path.write_bytes(b"")
    with pytest.raises(ExportError, match="faces.npz is not a whole NPZ"):
        read_faces(path)


@pytest.mark.parametrize("name", ["nowhere.csv", "nowhere.npz", "faces.txt"])
def test_a_missing_or_unknown_file_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=name):
        read_faces(tmp_path / name)


# --- evaluation ---------------------------------------------------------------------------------


def test_the_table_holds_the_mean_errors_of_each_bin() -> None:
    angles = np.array([[0.0, 5.0, 0.0], [0.0, -14.0, 0.0], [0.0, 50.0, 0.0], [0.0, 75.0, 0.0]])
    errors = np.array([[1.0, -2.0, 3.0], [3.0, 4.0, -5.0], [7.0, 7.0, 7.0], [-9.0, 1.0, 5.0]])
    table = evaluate.format_table(evaluate.Comparison("few", angles, {"mlp": errors}))
    assert "| all | 4 | 5.00 / 3.50 / 5.00 |" in table
    assert "| ≤ 60° | 3 | 3.67 / 4.33 / 5.00 |" in table
    assert "| 0–15° | 2 | 2.00 / 3.00 / 4.00 |" in table
    assert "| 45–60° | 1 | 7.00 / 7.00 / 7.00 |" in table
    assert "| 60–75° | 1 | 9.00 / 1.00 / 5.00 |" in table
    assert "15–30°" not in table
    assert "largest error: 9.00 / 7.00 / 7.00" in table


def test_errors_do_not_jump_at_half_a_turn() -> None:
    np.testing.assert_allclose(evaluate._wrapped(np.array([359.0, -350.0, 10.0])), [-1, 10, 10])


def test_evaluate_pose_prints_every_set_and_draws_the_plot(
    tmp_path: Path,
    faces: tuple[np.ndarray, np.ndarray],
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_csv(tmp_path / "mine.csv", *faces)
    plot = tmp_path / "plot.png"
    command(evaluate, "--faces", tmp_path / "mine.csv", "--synthetic", 200, "--plot", plot)
    printed = capsys.readouterr().out
    assert "mine: mean" in printed
    assert "held-out synthetic faces" in printed
    assert "mean head, PnP" in printed
    assert "mean head, Procrustes" in printed
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert plot.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--synthetic", "-1"], "--synthetic must not be negative"),
        (["--synthetic", "0"], "nothing to evaluate"),
        (["--plot", "plot.pdf"], "--plot must end in .png"),
    ],
)
def test_evaluate_pose_refuses_bad_options(arguments: list[str], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        command(evaluate, *arguments)


# --- the shipped checkpoint ---------------------------------------------------------------------


def test_the_shipped_checkpoint_reaches_the_goal_on_held_out_identities(
    shipped: network.PoseNetwork, held_out: tuple[np.ndarray, np.ndarray]
) -> None:
    landmarks, angles = held_out
    turned = np.abs(angles[:, 1]) <= 60
    errors = np.abs(np.degrees(network.estimate(shipped, landmarks)[:, :3]) - angles)[turned]
    assert (errors.mean(axis=0) <= 1.5).all(), errors.mean(axis=0)
    sample = np.flatnonzero(turned)[:600]
    for method in baseline.METHODS:
        fitted = np.degrees(baseline.baseline_angles(landmarks[sample], method)) - angles[sample]
        assert (np.abs(fitted).mean(axis=0) > errors.mean(axis=0)).all(), method


def test_the_shipped_checkpoint_knows_the_mean_head(shipped: network.PoseNetwork) -> None:
    poses = [(0, 0, 0), (0, 30, 0), (0, 0, 40), (20, -20, 10), (-20, 45, -30)]
    faces = np.stack([render(pose, 70.0) for pose in poses])
    errors = np.degrees(network.estimate(shipped, faces)[:, :3]) - poses
    assert np.abs(errors).max() < 3.0, errors


def test_the_shipped_checkpoint_is_mirror_consistent(
    shipped: network.PoseNetwork, held_out: tuple[np.ndarray, np.ndarray]
) -> None:
    landmarks = held_out[0][:1000]
    mirrored = dataset.mirror_landmarks(torch.from_numpy(landmarks)).numpy()
    direct = network.estimate(shipped, landmarks) * np.array(dataset.MIRRORED_SIGN)
    difference = np.abs(np.degrees((network.estimate(shipped, mirrored) - direct)[:, :3]))
    assert difference.mean(axis=0).max() < 0.5, difference.mean(axis=0)


def near_frontal(held_out: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return held-out faces turned by 45 degrees at most, in units of their eye distance."""
    landmarks = held_out[0][(np.abs(held_out[1]) <= 45).all(axis=1)]
    size = np.linalg.norm(landmarks[:, 36] - landmarks[:, 45], axis=1)
    return landmarks / size[:, None, None]


@pytest.mark.parametrize("factor", [0.96, 1.04])
def test_contour_conventions_move_the_angles_little(
    factor: float, shipped: network.PoseNetwork, held_out: tuple[np.ndarray, np.ndarray]
) -> None:
    landmarks = near_frontal(held_out)
    pulled = landmarks.copy()
    centre = landmarks[:, 27:36].mean(axis=1, keepdims=True)
    pulled[:, :17] = centre + factor * (landmarks[:, :17] - centre)
    moved = network.estimate(shipped, pulled)[:, :3] - network.estimate(shipped, landmarks)[:, :3]
    assert np.abs(np.degrees(moved)).mean(axis=0).max() < 2.0
    assert np.degrees(np.abs(moved)).max() > 0.01, "the contour must matter for this to test anything"


@pytest.mark.parametrize("level", [0.01, 0.02])
def test_landmark_noise_moves_the_angles_little(
    level: float, shipped: network.PoseNetwork, held_out: tuple[np.ndarray, np.ndarray]
) -> None:
    landmarks = near_frontal(held_out)
    noisy = landmarks + level * np.random.default_rng(1).normal(size=landmarks.shape)
    moved = network.estimate(shipped, noisy)[:, :3] - network.estimate(shipped, landmarks)[:, :3]
    assert 0.01 < np.abs(np.degrees(moved)).mean(axis=0).max() < 2.0


def test_bad_faces_leave_their_neighbours_alone(
    shipped: network.PoseNetwork, held_out: tuple[np.ndarray, np.ndarray]
) -> None:
    batch = held_out[0][:3].copy()
    alone = network.estimate(shipped, batch)
    batch[1, 20, 0] = np.nan
    mixed = network.estimate(shipped, batch)
    np.testing.assert_allclose(mixed[[0, 2]], alone[[0, 2]], atol=1e-5)
    assert np.isnan(mixed[1]).all()
