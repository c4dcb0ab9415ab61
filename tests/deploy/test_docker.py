"""The image: what its lines build, its linter, and the compose file's sources."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy.local.server import PROJECT
from tests.deploy.dockerfile import DOCKERFILE, PERF_DOCKERFILE, Image, context, stages
from tests.deploy.production_server import ProductionServer
from tests.faces import photo_faces
from triton_face_client import FaceFeatureClient

COMPOSE = PROJECT / "deploy" / "docker" / "compose.yaml"


@pytest.mark.parametrize("dockerfile", [DOCKERFILE, PERF_DOCKERFILE], ids=lambda path: path.name)
def test_the_linter_finds_nothing(dockerfile: Path):
    done = subprocess.run(
        [Path(sys.executable).parent / "hadolint", dockerfile], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_every_source_of_a_copy_reaches_the_builder(tmp_path: Path):
    sent = context(tmp_path)
    sources = []
    for stage in [*stages(), *stages(PERF_DOCKERFILE)]:
        for arguments in stage.arguments("COPY"):
            words = [word for word in arguments.split() if not word.startswith("--")]
            sources += [] if "--from=" in arguments else words[:-1]
    assert len(sources) >= 6
    for source in sources:
        assert (sent / source).exists(), source
    assert not list(sent.glob("model_repository/*/1/model.onnx")), "built in the image, not brought along"
    assert {path.name for path in sent.iterdir()} == {
        "requirements.txt",
        "constraints.txt",
        "export",
        "model_repository",
        "benchmarks",
        "deploy",
    }


def test_the_build_leaves_what_serves(image: Image):
    repository = image.path("/opt/triton-face/model_repository")
    for model in ("hog", "pose_mlp"):
        assert (repository / model / "1" / "model.onnx").stat().st_size > 1000
    assert (repository / "ensemble" / "1").is_dir()
    for path in repository.rglob("*"):
        assert path.stat().st_mode & 0o022 == 0, f"{path} can be written by others"
        assert path.stat().st_mode & 0o044 == 0o044, f"{path} cannot be read by uid 1000"
    (packages,) = (image.root / "python").glob("lib/python*/site-packages")
    assert {"torch", "numpy", "scipy", "skimage", "cv2"} <= {path.name for path in packages.iterdir()}
    assert not (packages / "pytest").exists()
    assert not (packages / "onnx").exists(), "not needed to serve"


def test_the_final_stage_is_locked_down():
    by_name = {stage.name: stage for stage in stages()}
    serve = by_name["serve"]
    assert serve.arguments("USER") == ["1000:1000"]
    assert serve.arguments("ENTRYPOINT") == ['["/opt/triton-face/serve.sh"]']
    assert serve.base == by_name["build"].base == "packages"
    assert by_name["packages"].base == "${TRITON_IMAGE}:${TRITON_VERSION}@${TRITON_DIGEST}"
    assert stages()[-1] == serve, "what is built when no target is named"


@pytest.mark.parametrize("target", ["image", "perf-image"])
def test_make_names_images_that_can_be(target: str):
    """BuildKit parses every FROM, needed or not: an argument that is missing leaves no reference."""
    digest = "sha256:" + 64 * "0"
    given = [
        "TRITON_IMAGE=registry.example/tritonserver",
        f"TRITON_DIGEST={digest}",
        f"TRITON_SDK_DIGEST={digest}",
    ]
    command = subprocess.check_output(["make", "--dry-run", target, *given], cwd=PROJECT, text=True)
    arguments = dict(re.findall(r"--build-arg (\w+)=(\S+)", command))
    dockerfile = PROJECT / re.search(r"--file (\S+)", command)[1]
    names = set()
    for stage in stages(dockerfile):
        if stage.base not in names:
            base = re.sub(r"\$\{(\w+)\}", lambda found: arguments.get(found[1], ""), stage.base)
            assert re.fullmatch(r"[a-z0-9./-]+:[\w.-]+@sha256:[0-9a-f]{64}", base), base
        names.add(stage.name)
    assert subprocess.run(["make", target], cwd=PROJECT, capture_output=True).returncode != 0, (
        "without a digest"
    )


def test_it_serves_what_the_local_server_serves(production: ProductionServer, client: FaceFeatureClient):
    frames, landmarks = photo_faces(20, 700)
    outputs = ("HOG", "POSE", "MASK", "AFFINE", "ALIGNED_LANDMARKS")
    expected = client.features(frames, landmarks, outputs)
    with FaceFeatureClient(production.grpc_url) as connected:
        answers = connected.features(frames, landmarks, outputs)
    for name in outputs:
        assert (answers[name] == expected[name]).all(), name


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load(COMPOSE.read_text())


def test_what_compose_mounts_is_there(compose: dict):
    mounted = [
        volume.partition(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
    ]
    for source in mounted:
        assert source in compose["volumes"] or (COMPOSE.parent / source).is_file(), source


def test_compose_keeps_the_service_apart(compose: dict):
    service = compose["services"]["triton-face"]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for one in compose["services"].values() for port in one["ports"])
    assert service["shm_size"] == "1gb"
