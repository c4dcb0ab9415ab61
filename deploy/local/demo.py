"""`python -m deploy.local.demo`: one photograph through a real server, a table and a picture of it.

The photograph is scikit-image's `astronaut` (Eileen Collins, NASA, public domain). Its 68 landmarks, in
`data/astronaut_landmarks.csv`, were read off MediaPipe's face mesh.
"""

import sys
from pathlib import Path

import numpy as np
from skimage.data import astronaut
from tritonclient.grpc import service_pb2

from deploy.local.server import PROJECT, LocalServer, ServerError
from triton_face_client import FaceFeatureClient, subject_pose
from triton_face_client.plotting.face_figure import draw_face

LANDMARKS_FILE = Path(__file__).resolve().parent / "data" / "astronaut_landmarks.csv"
PICTURE = PROJECT / "build" / "demo.png"

CROP_OVER_FACE = 1.6
"""Side of the crop over the landmarks' box: the aligned face reaches beyond the landmarks."""

TIMED_REQUESTS = 20
TIMED_BATCH = 32

ModelStatistics = dict[str, service_pb2.ModelStatistics]


def main() -> int:
    """Run the demo; return 1, with one line on standard error, when the server cannot start."""
    crop, landmarks = photograph()
    frames, points = crop[None], landmarks[None]
    try:
        print("starting tritonserver ...", flush=True)
        with (
            LocalServer() as server,
            FaceFeatureClient(server.grpc_url, headers=server.admin_headers) as client,
        ):
            features = client.features(frames, points, ["HOG", "POSE", "ALIGNED_LANDMARKS", "AFFINE", "MASK"])
            faces = client.align(frames, points, ["ALIGNED_FACES", "MASKED_FACES"])
            _print_server(client)
            _print_tensors({"FRAMES": frames, "LANDMARKS": points} | features | faces)
            _print_pose(features["POSE"])
            _print_times(client, frames, points)
    except ServerError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    PICTURE.parent.mkdir(exist_ok=True)
    draw_face(PICTURE, crop, landmarks, {name: rows[0] for name, rows in (features | faces).items()})
    print(f"\npicture: {PICTURE}")
    return 0


def photograph() -> tuple[np.ndarray, np.ndarray]:
    """Cut the face out of the photograph.

    Returns
    -------
    crop : ndarray of float32, shape (3, H, W)
        Values in [0, 1].
    landmarks : ndarray of float32, shape (68, 2)
        In pixels of the crop.
    """
    points = np.loadtxt(LANDMARKS_FILE, delimiter=",", skiprows=1, dtype=np.float32)
    low, high = points.min(axis=0), points.max(axis=0)
    half = CROP_OVER_FACE * (high - low).max() / 2
    left, top = np.maximum((low + high) / 2 - half, 0).astype(int)
    side = int(2 * half)
    crop = astronaut()[top : top + side, left : left + side]
    pixels = np.ascontiguousarray(crop.transpose(2, 0, 1), dtype=np.float32) / 255
    return pixels, points - np.float32([left, top])


def _print_server(client: FaceFeatureClient) -> None:
    metadata = client.connection.get_server_metadata()
    print(f"\n{metadata.name} {metadata.version}")
    for model in client.connection.get_model_repository_index(headers=client.headers).models:
        print(f"  {model.name:<11} version {model.version}  {model.state}")


def _print_tensors(tensors: dict[str, np.ndarray]) -> None:
    print("\ntensor              type     shape                lowest    highest")
    for name, values in tensors.items():
        shape = str(list(values.shape))
        print(f"{name:<19} {values.dtype!s:<8} {shape:<17} {values.min():>9.4g}  {values.max():>9.4g}")


def _print_pose(pose: np.ndarray) -> None:
    print("\nhead pose, degrees  pitch    roll     yaw")
    for name, angles in (("raw columns", pose[0, :3]), ("of the subject", subject_pose(pose)[0, :3])):
        print(f"{name:<17}" + "".join(f"{angle:>8.1f}" for angle in np.degrees(angles)))
    print("(of the subject: + is up, tilted to the subject's right, turned to the subject's right)")


def _print_times(client: FaceFeatureClient, frames: np.ndarray, landmarks: np.ndarray) -> None:
    print(f"\nmilliseconds in the server, mean of {TIMED_REQUESTS} requests")
    print("stage           1 face   per face of " + str(TIMED_BATCH))
    one = _stage_times(client, frames, landmarks)
    many = _stage_times(
        client, np.repeat(frames, TIMED_BATCH, axis=0), np.repeat(landmarks, TIMED_BATCH, axis=0)
    )
    for name in one:
        print(f"{name:<13} {one[name]:>8.2f}   {many[name] / TIMED_BATCH:>8.2f}")


def _stage_times(client: FaceFeatureClient, frames: np.ndarray, landmarks: np.ndarray) -> dict[str, float]:
    """Return milliseconds a request spends in each model, from the server's own statistics."""
    client.features(frames, landmarks)
    before = _statistics(client)
    for _ in range(TIMED_REQUESTS):
        client.features(frames, landmarks)
    after = _statistics(client)
    return {
        name: (after[name].inference_stats.success.ns - before[name].inference_stats.success.ns)
        / TIMED_REQUESTS
        / 1e6
        for name in sorted(after)
    }


def _statistics(client: FaceFeatureClient) -> ModelStatistics:
    return {model.name: model for model in client.connection.get_inference_statistics().model_stats}


if __name__ == "__main__":
    sys.exit(main())
