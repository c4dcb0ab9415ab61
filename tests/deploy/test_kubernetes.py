"""The manifests: rendered by Kustomize, valid, and in step with the server and with each other."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deploy.local.server import DEFAULT_REPOSITORY, PROJECT, STUB_MEMORY_BYTES
from tests.deploy.kubernetes import KUSTOMIZATIONS, OVERLAYS, kubectls, objects, rendered

VERSIONS = ("1.30", "1.34", "1.37")
"""Of Kubernetes: an old one that vendors still keep, one between, the validator's newest."""

CUSTOM = {"PodMonitor", "PrometheusRule"}
"""Prometheus Operator's kinds, which the validator does not know."""

NAMES = [*OVERLAYS, "perf-analyzer"]
SERVE = (PROJECT / "deploy" / "docker" / "serve.sh").read_text()


def pod(overlay: str) -> dict:
    return objects(overlay)["Deployment", "triton-face"]["spec"]["template"]["spec"]


def container(overlay: str) -> dict:
    (only,) = pod(overlay)["containers"]
    return only


def environment(overlay: str) -> dict[str, str]:
    return {one["name"]: one.get("value") for one in container(overlay)["env"]}


def option(name: str) -> int:
    found = re.search(rf"--{name}=(\d+)", SERVE)
    assert found, name
    return int(found[1])


def mebibytes(quantity: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()
    return int(number) * {"Mi": 1, "Gi": 1024}[unit]


@pytest.mark.parametrize("name", NAMES)
def test_every_kubectl_renders_the_same(name: str):
    assert kubectls(), "no kubectl: `make deploy-check` unpacks Debian's kubernetes-client"
    first, *others = (objects(name, kubectl) for kubectl in kubectls())
    assert first
    assert all(other == first for other in others)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", NAMES)
def test_every_standard_object_is_valid(name: str, version: str, tmp_path: Path):
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text(rendered(name, kubectls()[0]))
    validator = Path(sys.executable).parent / "kubernetes-validate"
    command = [validator, "--strict", "--kubernetes-version", version, manifest]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = len(re.findall(r"^INFO .* passed for resource", done.stdout + done.stderr, re.MULTILINE))
    unknown = set(re.findall(r"Couldn't find schema for kind (\w+)", done.stdout + done.stderr))
    assert unknown <= CUSTOM
    assert passed == sum(kind not in CUSTOM for kind, _ in objects(name))


def test_the_validator_refuses_what_is_wrong(tmp_path: Path):
    broken = objects("dev")["Deployment", "triton-face"]
    broken["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    manifest = tmp_path / "broken.yaml"
    manifest.write_text(yaml.safe_dump(broken))
    validator = Path(sys.executable).parent / "kubernetes-validate"
    assert subprocess.run([validator, "--strict", manifest], capture_output=True).returncode != 0


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_an_overlay_has(overlay: str):
    kinds = sorted(kind for kind, _ in objects(overlay))
    everywhere = ["Deployment", "Namespace", "NetworkPolicy", "Service", "Service"]
    fleet = ["ConfigMap", "HorizontalPodAutoscaler", "PodDisruptionBudget", "PodMonitor", "PrometheusRule"]
    assert kinds == sorted(everywhere + (fleet if overlay != "dev" else []))
    for (kind, _), one in objects(overlay).items():
        if kind != "Namespace":
            assert one["metadata"]["namespace"] == "triton-face"


def test_services_find_the_pods_and_nothing_else():
    found = objects("gpu")
    labels = found["Deployment", "triton-face"]["spec"]["template"]["metadata"]["labels"]
    ports = {port["name"]: port["containerPort"] for port in container("gpu")["ports"]}
    assert ports == {"grpc": 8001, "http": 8000, "metrics": 8002}
    for name, headless in (("triton-face", False), ("triton-face-pods", True)):
        service = found["Service", name]["spec"]
        assert (service.get("clusterIP") == "None") == headless
        assert service["selector"].items() <= labels.items()
        assert [port["targetPort"] for port in service["ports"]] == ["grpc"], "HTTP is for the probes"
    for kind, path in (
        ("PodDisruptionBudget", ["selector"]),
        ("NetworkPolicy", ["podSelector"]),
        ("PodMonitor", ["selector"]),
    ):
        selector = found[kind, "triton-face"]["spec"]
        for step in path:
            selector = selector[step]
        assert selector["matchLabels"].items() <= labels.items()
    autoscaler = found["HorizontalPodAutoscaler", "triton-face"]["spec"]
    assert autoscaler["scaleTargetRef"] == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": "triton-face",
    }
    assert "replicas" not in found["Deployment", "triton-face"]["spec"], "the autoscaler's alone"


@pytest.mark.parametrize("name", NAMES)
def test_pods_have_no_privileges(name: str):
    kind = ("Job", "perf-analyzer") if name == "perf-analyzer" else ("Deployment", "triton-face")
    spec = objects(name)[kind]["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] == 1000
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    (only,) = spec["containers"]
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_shared_memory_holds_every_stub_and_the_pod_holds_it(overlay: str):
    """Triton makes its regions at the start; a memory-backed volume counts as the container's memory."""
    volumes = {volume["name"]: volume for volume in pod(overlay)["volumes"]}
    shared = volumes["shared-memory"]["emptyDir"]
    assert shared["medium"] == "Memory"
    mounts = {mount["mountPath"]: mount["name"] for mount in container(overlay)["volumeMounts"]}
    assert mounts["/dev/shm"] == "shared-memory"
    tuning = environment(overlay)["MODEL_CONFIG_NAME"]
    path = DEFAULT_REPOSITORY / "align_mask" / (f"configs/{tuning}.pbtxt" if tuning else "config.pbtxt")
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    stubs = sum(group.count for group in config.instance_group)
    size = mebibytes(shared["sizeLimit"])
    assert 3 * stubs * STUB_MEMORY_BYTES / 2**20 <= size, "at the start, and room to grow"
    assert size < mebibytes(container(overlay)["resources"]["limits"]["memory"]) / 2


def test_a_stopping_pod_has_time():
    """First clients go away, then what runs is finished, then the kubelet loses patience."""
    stop = container("gpu")["lifecycle"]["preStop"]["exec"]["command"]
    assert stop[0] == "sleep"
    # gRPC spreads the age of connections by a tenth; endpoints take a few seconds to be known everywhere.
    oldest = 1.1 * option("grpc-max-connection-age") / 1000
    assert float(stop[1]) > oldest + 10
    grace = pod("gpu")["terminationGracePeriodSeconds"]
    assert grace > float(stop[1]) + option("exit-timeout-secs") + 10


def test_the_tunings_are_there():
    assert {overlay: environment(overlay)["MODEL_CONFIG_NAME"] for overlay in OVERLAYS} == {
        "gpu": "gpu",
        "gpu-tls": "gpu",
        "cpu": "cpu",
        "dev": "",
    }
    assert container("gpu")["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in str(container("cpu")) + str(container("dev"))


def test_secrets_are_referred_to_and_never_in_the_manifests():
    for name in NAMES:
        assert "Secret" not in {kind for kind, _ in objects(name)}
    (key,) = [one for one in container("gpu")["env"] if one["name"] == "ADMIN_KEY"]
    assert key["valueFrom"]["secretKeyRef"] == {"name": "triton-face-admin", "key": "key", "optional": True}
    (tls,) = [volume for volume in pod("gpu-tls")["volumes"] if "secret" in volume]
    assert tls["secret"]["secretName"] == "triton-face-tls"
    assert not tls["secret"].get("optional"), "a pod without its certificate must not serve in the clear"
    mount = environment("gpu-tls")["TLS_FOLDER"]
    assert {"name": "tls", "mountPath": mount, "readOnly": True} in container("gpu-tls")["volumeMounts"]


def test_the_load_generator_reaches_the_service():
    found = objects("perf-analyzer")["Job", "perf-analyzer"]["spec"]["template"]
    policy = objects("gpu")["NetworkPolicy", "triton-face"]["spec"]["ingress"]
    wanted = policy[0]["from"][0]["podSelector"]["matchLabels"]
    assert wanted.items() <= found["metadata"]["labels"].items()
    arguments = found["spec"]["containers"][0]["args"]
    address = arguments[arguments.index("-u") + 1]
    assert address == "triton-face:8001"
    data = arguments[arguments.index("--input-data") + 1]
    assert data in (PROJECT / "deploy" / "docker" / "Dockerfile").read_text()


def test_no_file_is_left_out():
    """A manifest that no kustomization names is applied by nobody."""
    for path in KUSTOMIZATIONS.rglob("*.yaml"):
        if path.name == "kustomization.yaml":
            continue
        listed = yaml.safe_load((path.parent / "kustomization.yaml").read_text())
        assert path.name in listed.get("resources", []) + listed.get("patchesStrategicMerge", []), path
    overlays = (KUSTOMIZATIONS / "overlays").glob("*/kustomization.yaml")
    assert {path.parent.name for path in overlays} == set(OVERLAYS)
