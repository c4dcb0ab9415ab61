"""The command `triton-face`: outputs, error messages and exit codes, against a real server."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage.data import astronaut

from deploy.local import LocalServer
from deploy.local.server import PROJECT
from tests.support.film_files import FAILED_ROW, FRAMES, LINE_ROW, NAN_ROW, write_long_film
from triton_face_client import FaceFeatureClient, subject_pose
from triton_face_client.cli import main
from triton_face_client.video.crops import crop_landmarks, cut_faces, landmark_boxes
from triton_face_client.video.landmark_tables import read_table
from triton_face_client.video.media import FrameReader

LONG_ROWS = 2048
"""Rows of the table long.npz: enough to interrupt a run between its first and its last part."""

Run = Callable[..., tuple[int, Path]]
"""Type of the fixture `run`."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a film, its landmark table, and a table with many faces per frame."""
    folder = tmp_path_factory.mktemp("film")
    write_long_film(folder, LONG_ROWS)
    return folder


@pytest.fixture
def run(server: LocalServer, folder: Path, tmp_path: Path) -> Run:
    """Return a function that executes `triton-face run` on the film and returns exit code and output file."""

    def call(*options: str, table: str = "film.csv", name: str = "out.parquet") -> tuple[int, Path]:
        out = tmp_path / name
        inputs = [str(folder / "film.avi"), "--landmarks", str(folder / table), "--out", str(out)]
        return main(["run", *inputs, "--url", server.grpc_url, *options]), out

    return call


def read_hog(path: Path) -> np.ndarray:
    """Read the HOG features ``[N, 5408]`` of a Parquet file."""
    return np.stack(pq.read_table(path)["HOG"].to_numpy())


@pytest.fixture(scope="module")
def long_hog(server: LocalServer, folder: Path) -> np.ndarray:
    """Return the HOG features of long.npz from a run without interruption."""
    out = folder / "long.parquet"
    inputs = [str(folder / "film.avi"), "--landmarks", str(folder / "long.npz"), "--out", str(out)]
    assert main(["run", *inputs, "--url", server.grpc_url]) == 0
    return read_hog(out)


def test_run_writes_features_of_video_and_openface_table(run: Run, folder: Path, client: FaceFeatureClient):
    code, out = run()
    assert code == 0
    table = pq.read_table(out)
    faces = read_table(folder / "film.csv")
    assert table.column_names[:6] == ["input", "frame", "face_id", "timestamp", "confidence", "success"]
    assert set(table.column_names) >= {"Pitch", "Roll", "Yaw", "X", "Y", "Z", "x_0", "y_67", "HOG", "refused"}
    assert table["input"].to_pylist() == [str(folder / "film.avi")] * FRAMES
    assert table["frame"].to_pylist() == list(range(FRAMES))
    features = read_hog(out)
    invalid = [FAILED_ROW, NAN_ROW, LINE_ROW]
    valid = np.setdiff1d(np.arange(FRAMES), invalid)
    assert np.isnan(features[invalid]).all()
    reasons = table["refused"].to_pylist()
    assert [row for row, reason in enumerate(reasons) if reason] == invalid
    assert "points on one line" in reasons[LINE_ROW]

    pose = np.stack([table[name].to_numpy() for name in ("Pitch", "Roll", "Yaw", "X", "Y", "Z")], axis=1)
    np.testing.assert_array_equal(pose[valid], subject_pose(client.pose(faces.landmarks[valid])))
    assert np.isfinite(pose[LINE_ROW]).all(), "pose does not need a hull"
    with FrameReader([folder / "film.avi"], apply_exif=True) as reader:
        for row in valid:
            boxes = landmark_boxes(faces.landmarks[[row]])
            crop = cut_faces(reader.read(None, int(row)), boxes)
            points = crop_landmarks(faces.landmarks[[row]], boxes)
            np.testing.assert_array_equal(features[row], client.features(crop, points, ["HOG"])["HOG"][0])


def test_all_formats_hold_the_same_features(run: Run):
    tables = {name: run(name=f"out.{name}")[1] for name in ("parquet", "csv", "npz")}
    parquet = pq.read_table(tables["parquet"])
    features = read_hog(tables["parquet"])
    csv = pyarrow.csv.read_csv(tables["csv"])
    assert csv.column_names == parquet.column_names
    csv_features = [json.loads(row.replace("nan", "NaN")) for row in csv["HOG"].to_pylist()]
    np.testing.assert_array_equal(np.array(csv_features, dtype=np.float32), features)
    np.testing.assert_array_equal(
        csv["Pitch"].to_numpy().astype(np.float32), parquet["Pitch"].to_numpy().astype(np.float32)
    )
    arrays = np.load(tables["npz"])
    np.testing.assert_array_equal(arrays["HOG"], features)
    np.testing.assert_array_equal(arrays["landmarks"][:, 3, 1], parquet["y_3"].to_numpy())
    assert arrays["refused"].tolist() == [reason or "" for reason in parquet["refused"].to_pylist()]
    for path in tables.values():
        np.testing.assert_array_equal(
            read_table(path).landmarks[0], read_table(tables["parquet"]).landmarks[0]
        )


def test_run_accepts_a_feature_file_as_landmark_table(run: Run, server: LocalServer, tmp_path: Path):
    first = run()[1]
    second = tmp_path / "second.parquet"
    film = pq.read_table(first)["input"][0].as_py()
    assert main(["run", film, "--landmarks", str(first), "--out", str(second), "--url", server.grpc_url]) == 0
    np.testing.assert_array_equal(read_hog(second), read_hog(first))


def start_long_run(server: LocalServer, folder: Path, out: Path, *options: str) -> subprocess.Popen:
    """Start a run of long.npz in another process; return when it has written its first part."""
    inputs = [str(folder / "film.avi"), "--landmarks", str(folder / "long.npz"), "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "triton_face_client", "run", *inputs, "--url", server.grpc_url, *options],
        cwd=PROJECT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # If the tests run in the background of a shell, they ignore SIGINT, and child processes inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 180
    while not list(out.with_name(out.name + ".parts").glob("*-*.parquet")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.005)
    return process


@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_run_resumes_without_losing_rows(
    run: Run,
    server: LocalServer,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    long_hog: np.ndarray,
    stop_signal: signal.Signals,
):
    process = start_long_run(server, folder, tmp_path / "out.parquet")
    os.kill(process.pid, stop_signal)
    _, errors = process.communicate()
    if stop_signal == signal.SIGINT:
        assert process.returncode == 130
        assert b"interrupted" in errors.splitlines()[-1]
    assert not (tmp_path / "out.parquet").exists()
    capsys.readouterr()
    code, out = run("--json", table="long.npz")
    report = json.loads(capsys.readouterr().out)
    assert code == 0
    assert 0 < report["resumed_at"] < LONG_ROWS
    assert (report["rows"], report["faces"], report["refused"]) == (LONG_ROWS, LONG_ROWS, 0)
    np.testing.assert_array_equal(read_hog(out), long_hog)
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


@pytest.mark.slow
def test_run_resumes_after_the_server_was_stopped(
    run: Run, repository: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    with LocalServer(repository) as stopped_server:
        process = start_long_run(stopped_server, folder, tmp_path / "out.parquet", "--retry", "1")
        stopped_server.stop()
        _, errors = process.communicate()
    assert process.returncode == 4
    assert errors.splitlines()[-1].startswith(b"triton-face run: ")
    assert b"out.parquet.parts keeps the finished rows: run the same command again" in errors.splitlines()[-1]
    code, _ = run("--json", table="long.npz")
    report = json.loads(capsys.readouterr().out)
    assert code == 0
    assert report["resumed_at"] > 0
    assert report["faces"] == LONG_ROWS


def test_two_runs_cannot_write_the_same_file(
    run: Run, server: LocalServer, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    process = start_long_run(server, folder, tmp_path / "out.parquet")
    os.kill(process.pid, signal.SIGSTOP)
    assert run(table="long.npz")[0] == 3
    assert "another run is writing" in capsys.readouterr().err
    os.kill(process.pid, signal.SIGCONT)
    process.communicate()
    assert process.returncode == 0


def test_existing_file_is_replaced_only_with_restart(run: Run, capsys: pytest.CaptureFixture):
    out = run()[1]
    before = out.stat().st_mtime_ns
    assert run()[0] == 3
    assert "--restart to replace it" in capsys.readouterr().err
    assert out.stat().st_mtime_ns == before
    assert run("--restart")[0] == 0
    assert out.stat().st_mtime_ns > before


def test_run_does_not_resume_parts_of_other_inputs(
    run: Run, server: LocalServer, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    process = start_long_run(server, folder, tmp_path / "out.parquet")
    process.kill()
    process.communicate()
    assert run(table="film.csv")[0] == 3
    assert "holds an unfinished run of other files" in capsys.readouterr().err
    code, out = run("--restart", table="film.csv")
    assert code == 0
    assert len(pq.read_table(out)) == FRAMES


@pytest.fixture
def images(tmp_path: Path, folder: Path) -> Path:
    """Return a folder with four images, the last one truncated. Its parent folder has a py-feat table."""
    images = tmp_path / "images"
    images.mkdir()
    points = np.loadtxt(PROJECT / "deploy/local/data/astronaut_landmarks.csv", delimiter=",", skiprows=1)
    lines = [",".join(["frame", "FaceRectX", "input", *(f"{axis}_{i}" for axis in "xy" for i in range(68))])]
    for number, scale in enumerate((1.0, 0.5, 2.0, 1.0)):
        name, size = f"p{number}.jpg", round(512 * scale)
        Image.fromarray(astronaut()).resize((size, size)).save(images / name, quality=95)
        lines.append(",".join([str(number), "1", f"elsewhere/{name}", *map(str, (scale * points.T).ravel())]))
    (tmp_path / "fex.csv").write_text("\n".join(lines) + "\n")
    truncated = images / "p3.jpg"
    truncated.write_bytes(truncated.read_bytes()[:20_000])
    return images


def test_run_with_a_pyfeat_table_reports_a_truncated_image(
    server: LocalServer, images: Path, capsys: pytest.CaptureFixture
):
    out = images.parent / "out.parquet"
    table = str(images.parent / "fex.csv")
    command = ["run", str(images), "--landmarks", table, "--out", str(out), "--url", server.grpc_url]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["faces"], report["refused"]) == (4, 3, 1)
    rows = pq.read_table(out)
    assert [Path(name).name for name in rows["input"].to_pylist()] == [f"p{i}.jpg" for i in range(4)]
    assert "p3.jpg" in rows["refused"][3].as_py()
    features = read_hog(out)
    assert np.isfinite(features[:3]).all()
    assert np.corrcoef(features[0], features[2])[0, 1] > 0.9, "the same face at another size"
    assert rows["FaceRectX"].to_pylist() == [1.0] * 4


def test_crops_by_face_rect_or_by_enlarged_landmark_box(
    server: LocalServer, images: Path, client: FaceFeatureClient, capsys: pytest.CaptureFixture
):
    points = np.loadtxt(PROJECT / "deploy/local/data/astronaut_landmarks.csv", delimiter=",", skiprows=1)
    box = np.array([160.0, 20.0, 290.0, 200.0])
    names = ["FaceRectX", "FaceRectY", "FaceRectWidth", "FaceRectHeight"]
    table = images.parent / "rect.csv"
    header = ["frame", *names, *(f"{axis}_{i}" for axis in "xy" for i in range(68))]
    row = [0, *box[:2], *(box[2:] - box[:2]), *points.T.ravel()]
    table.write_text(",".join(header) + "\n" + ",".join(map(str, row)) + "\n")
    image = images / "p0.jpg"
    out = images.parent / "out.parquet"
    command = ["run", str(image), "--landmarks", str(table), "--out", str(out), "--url", server.grpc_url]
    assert main([*command, "--crop", "face-rect"]) == 0
    pixels = np.asarray(Image.open(image))
    crop = cut_faces(pixels, box[None], enlarge=1.0)
    expected = client.features(crop, crop_landmarks(points[None], box[None], enlarge=1.0), ["HOG"])["HOG"]
    np.testing.assert_array_equal(read_hog(out), expected)
    assert main([*command, "--restart", "--enlarge", "1.8"]) == 0
    crop = cut_faces(pixels, landmark_boxes(points[None]), enlarge=1.8)
    crop_points = crop_landmarks(points[None], landmark_boxes(points[None]), enlarge=1.8)
    np.testing.assert_array_equal(read_hog(out), client.features(crop, crop_points, ["HOG"])["HOG"])
    without_y = ["run", str(image), "--landmarks", str(images.parent / "fex.csv"), "--out", f"{out}.csv"]
    assert main([*without_y, "--crop", "face-rect", "--url", server.grpc_url]) == 3
    assert "no column FaceRectY" in capsys.readouterr().err


def test_warns_if_the_table_names_another_video(
    run: Run, server: LocalServer, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    landmarks = read_table(folder / "film.csv").landmarks
    table = tmp_path / "other.npz"
    np.savez(table, landmarks=landmarks, source=["other.mp4"] * FRAMES, frame=np.arange(FRAMES) + 6)
    code, _ = run(table=str(table))
    output = capsys.readouterr().out
    assert code == 0
    assert "warning: " in output
    assert "names other.mp4, but film.avi was read" in output
    assert "for example row 6: " in output
    assert "film.avi has 12 frames, frame 12 is not among them" in output


def test_rows_of_a_video_that_is_not_given_get_a_reason(
    run: Run, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    landmarks = read_table(folder / "film.csv").landmarks
    table = tmp_path / "two.npz"
    source = ["film.avi", "other.avi"] * (FRAMES // 2)
    np.savez(table, landmarks=landmarks, source=source, frame=np.arange(FRAMES))
    code, out = run(table=str(table))
    assert code == 0
    rows = pq.read_table(out)
    assert [bool(reason) for reason in rows["refused"].to_pylist()[1::2]] == [True] * (FRAMES // 2)
    assert "names other.avi" in rows["refused"][1].as_py()
    assert rows["refused"][0].as_py() is None


def test_landmarks_outside_the_image_get_a_reason(run: Run, folder: Path, tmp_path: Path):
    landmarks = read_table(folder / "film.csv").landmarks[:3]
    landmarks[1] += 5000
    landmarks[2, 1:] += 5000
    np.savez(tmp_path / "moved.npz", landmarks=landmarks)
    code, out = run(table=str(tmp_path / "moved.npz"))
    assert code == 0
    inside, outside, one_point_inside = pq.read_table(out)["refused"].to_pylist()
    assert inside is None
    assert outside.startswith("all landmarks are outside the image of ")
    assert one_point_inside is None


def test_rejects_several_files_for_a_table_of_one_image(
    server: LocalServer, images: Path, capsys: pytest.CaptureFixture
):
    """OpenFace's FaceLandmarkImg writes one table per image, without a frame column."""
    table = images.parent / "landmark_img.csv"
    lines = (images.parent / "fex.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines]
    names = ["face", "confidence", *rows[0][3:]]
    table.write_text("\n".join([", ".join(names)] + [", ".join(["0", "0.9", *row[3:]]) for row in rows[1:]]))
    out = images.parent / "out.parquet"
    command = ["run", str(images), "--landmarks", str(table), "--out", str(out), "--url", server.grpc_url]
    assert main(command) == 3
    assert "the table belongs to one image, but 4 files are given" in capsys.readouterr().err


def test_text_column_may_be_empty_in_the_first_part(
    run: Run, server: LocalServer, folder: Path, tmp_path: Path
):
    """A column needs the same Arrow type in all parts, but Arrow cannot infer the type of an empty column."""
    faces = np.load(folder / "long.npz")
    count = 1100
    names = ["frame", "Identity", *(f"{axis}_{i}" for axis in "xy" for i in range(68))]
    rows = [
        [frame, "" if row < 700 else "Anna", *points.T.ravel().round(2)]
        for row, (frame, points) in enumerate(zip(faces["frame"][:count], faces["landmarks"], strict=False))
    ]
    table = tmp_path / "identities.csv"
    table.write_text("\n".join(",".join(map(str, row)) for row in [names, *rows]))
    code, out = run(table=str(table))
    assert code == 0
    assert pq.read_table(out)["Identity"].to_pylist()[-1] == "Anna"


def test_run_accepts_a_table_of_one_invalid_face(run: Run, tmp_path: Path):
    table = tmp_path / "flat.npz"
    np.savez(table, landmarks=np.full((1, 68, 2), 50.0), frame=[0])
    code, out = run(table=str(table))
    assert code == 0
    assert "all landmarks are equal" in pq.read_table(out)["refused"][0].as_py()


def test_does_not_overwrite_the_landmark_table(
    run: Run, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture
):
    table = tmp_path / "out.npz"
    table.write_bytes((folder / "long.npz").read_bytes())
    assert run("--restart", table=str(table), name="out.npz")[0] == 3
    assert "is an input of this run" in capsys.readouterr().err
    assert table.read_bytes() == (folder / "long.npz").read_bytes()


def test_run_does_not_resume_after_an_input_changed(
    server: LocalServer, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    copy = tmp_path / "inputs"
    shutil.copytree(folder, copy)
    process = start_long_run(server, copy, tmp_path / "out.parquet")
    process.kill()
    process.communicate()
    os.utime(copy / "film.avi", (1, 1))
    command = [str(copy / "film.avi"), "--landmarks", str(copy / "long.npz"), "--url", server.grpc_url]
    assert main(["run", *command, "--out", str(tmp_path / "out.parquet")]) == 3
    assert "holds an unfinished run of other files" in capsys.readouterr().err


def test_rejects_landmarks_as_fractions_of_the_image(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture):
    table = tmp_path / "fractions.npz"
    np.savez(table, landmarks=np.random.default_rng(0).random((3, 68, 2)))
    assert run(table=str(table))[0] == 3
    assert "multiply them by its width and height" in capsys.readouterr().err


def table_without_points(tmp_path: Path, folder: Path) -> Path:
    """Write film.csv with its first 60 columns only; return the path."""
    lines = (folder / "film.csv").read_text().splitlines()
    path = tmp_path / "without_points.csv"
    path.write_text("\n".join(",".join(line.split(",")[:60]) for line in lines))
    return path


def test_errors_are_one_line_with_exit_code(
    server: LocalServer, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    film, table, out = str(folder / "film.avi"), str(folder / "film.csv"), str(tmp_path / "out.parquet")
    text = tmp_path / "text.avi"
    text.write_text("no video")
    incomplete_table = str(table_without_points(tmp_path, folder))
    cases = [
        (["run", film, "--landmarks", incomplete_table, "--out", out], 3, "lacks"),
        (["run", "missing.avi", "--landmarks", table, "--out", out], 3, "missing.avi does not exist"),
        (["run", str(text), "--landmarks", table, "--out", out], 3, "neither a video"),
        (["run", film, "--landmarks", "missing.csv", "--out", out], 3, "missing.csv"),
        (["run", film, "--landmarks", table, "--out", "out.txt"], 3, "must end in .parquet, .csv or .npz"),
        (["run", film, "--landmarks", table, "--out", "/proc/x/out.csv"], 3, "cannot write to"),
        (["plot", film, "--landmarks", table, "--out", "out.txt"], 3, "out.txt"),
        (["plot", film, "--landmarks", table, "--out", str(tmp_path / "a.png"), "--rows", "99"], 3, "99"),
        (["info", "--root-certificates", "missing.pem"], 3, "cannot read missing.pem"),
        (["info", "--url", "127.0.0.1:9"], 4, "no server answers at 127.0.0.1:9"),
        (["run", film, "--landmarks", table, "--out", out, "--url", "127.0.0.1:9"], 4, "no server answers"),
        (["bench", "--url", "127.0.0.1:9"], 4, "no server answers"),
        (["info", "--url", "127.0.0.1:9", "--wait", "0.2"], 4, "was not ready after 0.2 s"),
    ]
    for arguments, code, message in cases:
        command = arguments if "--url" in arguments else [*arguments, "--url", server.grpc_url]
        assert main(command) == code, command
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"triton-face {command[0]}: ")
        assert message in error
        assert main([*command, "--json"]) == code
        assert json.loads(capsys.readouterr().out)["exit_code"] == code
    assert not Path(out).exists()
    assert not Path(f"{out}.parts").exists()


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["unknown"],
        ["run"],
        ["bench", "--rate", "0"],
        ["info", "--header", "x"],
        ["info", "--timeout", "text"],
    ],
)
def test_invalid_command_line_has_exit_code_2(command: list[str]):
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 2


def test_info_prints_text_or_json(server: LocalServer, capsys: pytest.CaptureFixture):
    with FaceFeatureClient(server.grpc_url) as client:
        client.features(
            np.zeros((1, 3, 112, 112), np.uint8), np.random.default_rng(0).random((1, 68, 2)) * 99
        )
    assert main(["info", "--url", server.grpc_url]) == 0
    text = capsys.readouterr().out
    assert "triton 2.51.0 at" in text
    assert "FRAMES_UINT8 UINT8 [N, 3, -1, -1], optional" in text
    assert main(["info", "--url", server.grpc_url, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ready"]
    models = {model["name"]: model for model in report["models"]}
    assert set(models) == {"ensemble", "align_mask", "hog", "pose_mlp"}
    assert models["ensemble"]["faces"] >= 1
    assert models["hog"]["compute_ms"] > 0


def test_bench_measures_closed_and_open_loop(server: LocalServer, capsys: pytest.CaptureFixture):
    common = ["--url", server.grpc_url, "--seconds", "1.5", "--batch", "4", "--json"]
    assert main(["bench", *common, "--concurrency", "2"]) == 0
    closed = json.loads(capsys.readouterr().out)
    assert (closed["loop"], closed["concurrency"], closed["failed"]) == ("closed", 2, {})
    assert closed["faces_a_second"] == pytest.approx(4 * closed["requests"] / closed["seconds"])
    latency = closed["latency_ms"]
    assert list(latency) == ["p50", "p90", "p95", "p99", "max"]
    assert list(latency.values()) == sorted(latency.values())
    assert main(["bench", *common, "--rate", "80"]) == 0
    opened = json.loads(capsys.readouterr().out)
    assert (opened["loop"], opened["concurrency"]) == ("open", None)
    sent = opened["requests"] + sum(opened["failed"].values())
    assert sent == 30, "80 faces/s for 1.5 s are 30 requests of 4 faces"


def test_closed_pipe_is_no_error(server: LocalServer):
    """As with `triton-face info | head -0`."""
    command = [sys.executable, "-m", "triton_face_client", "info", "--url", server.grpc_url]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_error_names_the_missing_extra(server: LocalServer, folder: Path, tmp_path: Path):
    for command, package, extra in (
        ("run", "tqdm", "run"),
        ("run", "pyarrow", "run"),
        ("plot", "matplotlib", "plot"),
    ):
        arguments = [command, str(folder / "film.avi"), "--landmarks", str(folder / "film.csv")]
        arguments += ["--out", str(tmp_path / "x.png"), "--url", server.grpc_url]
        script = (
            f"import sys; sys.modules[{package!r}] = None;"
            f"from triton_face_client.cli import main; sys.exit(main({arguments!r}))"
        )
        completed = subprocess.run(
            [sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True
        )
        assert completed.returncode == 3
        assert f"pip install 'triton-face-client[{extra}]'" in completed.stderr.splitlines()[-1]


def test_module_runs_as_command(server: LocalServer):
    completed = subprocess.run(
        [sys.executable, "-m", "triton_face_client", "info", "--json"],
        env=os.environ | {"TRITON_FACE_URL": server.grpc_url},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(completed.stdout)["version"] == "2.51.0"
