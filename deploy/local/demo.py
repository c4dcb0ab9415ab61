"""`python -m deploy.local.demo`: send a photograph to a real server; print its results and draw them."""

import sys

import numpy as np
from tritonclient.grpc import service_pb2

from deploy.local.errors import ServerError
from deploy.local.photograph import photograph
from deploy.local.server import PROJECT, LocalServer
from triton_face_client import FaceFeatureClient, subject_pose
from triton_face_client.hog_settings import HogSettings
from triton_face_client.plotting.face_figure import draw_face

PICTURE = PROJECT / "build" / "demo.png"

TIMED_REQUESTS = 20
FACES_PER_BATCH = 32

ModelStatistics = dict[str, service_pb2.ModelStatistics]


def main() -> int:
    """Run the demo; return 1, with one line on standard error, if the server cannot start."""
    crop, points = photograph()
    frames, landmarks = crop[None], points[None]
    try:
        print("starting tritonserver ...", flush=True)
        with (
            LocalServer() as server,
            FaceFeatureClient(server.grpc_url, headers=server.admin_headers) as client,
        ):
            features = client.features(
                frames, landmarks, ["HOG", "POSE", "ALIGNED_LANDMARKS", "AFFINE", "MASK"]
            )
            faces = client.align(frames, landmarks, ["ALIGNED_FACES", "MASKED_FACES"])
            settings = HogSettings.from_parameters(client.model("hog").parameters)
            _print_server(client)
            _print_tensors({"FRAMES": frames, "LANDMARKS": landmarks} | features | faces)
            _print_pose(features["POSE"])
            _print_times(client, frames, landmarks)
    except ServerError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    PICTURE.parent.mkdir(exist_ok=True)
    draw_face(PICTURE, crop, points, {name: rows[0] for name, rows in (features | faces).items()}, settings)
    print(f"\npicture: {PICTURE}")
    return 0


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
    print("(of the subject: positive pitch is up, positive roll and yaw are to the subject's right)")


def _print_times(client: FaceFeatureClient, frames: np.ndarray, landmarks: np.ndarray) -> None:
    print(f"\nmilliseconds in the server, mean of {TIMED_REQUESTS} requests")
    print("model           1 face   per face of " + str(FACES_PER_BATCH))
    one = _model_times(client, frames, landmarks)
    many = _model_times(
        client, np.repeat(frames, FACES_PER_BATCH, axis=0), np.repeat(landmarks, FACES_PER_BATCH, axis=0)
    )
    for name in one:
        print(f"{name:<13} {one[name]:>8.2f}   {many[name] / FACES_PER_BATCH:>8.2f}")


def _model_times(client: FaceFeatureClient, frames: np.ndarray, landmarks: np.ndarray) -> dict[str, float]:
    """Return the mean milliseconds of a request in each model, from the server's statistics."""
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
