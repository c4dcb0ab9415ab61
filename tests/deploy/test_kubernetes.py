"""The manifests: rendered by Kustomize, valid, and in step with the server and with each other."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deploy.docker import probe
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
    expected = everywhere + (fleet if overlay != "dev" else [])
    if overlay == "gpu-next":  # rules and dashboard are once a cluster
        expected = [kind for kind in expected if kind not in ("ConfigMap", "PrometheusRule")]
    assert kinds == sorted(expected)
    name = {"dev": "triton-face-dev", "gpu-next": "triton-face-next"}.get(overlay, "triton-face")
    for (kind, found), one in objects(overlay).items():
        assert (found if kind == "Namespace" else one["metadata"]["namespace"]) == name


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
def test_shared_memory_has_room_for_largest_request_of_every_instance(overlay: str):
    """A region starts with its default size; a memory-backed volume counts as the container's memory."""
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
    frames_bytes = int(config.parameters["max_request_pixels"].string_value) * 3 * 4
    assert stubs * (STUB_MEMORY_BYTES + frames_bytes) / 2**20 <= size
    assert size < mebibytes(container(overlay)["resources"]["limits"]["memory"]) / 2


def test_a_stopping_pod_has_time():
    """First clients go away, then what runs is finished, then the kubelet loses patience."""
    stop = container("gpu")["lifecycle"]["preStop"]["exec"]["command"]
    assert stop[0] == "sleep"
    # gRPC spreads the age of connections by a tenth; name servers keep an address for half a minute, and
    # endpoints take a few seconds to be known everywhere.
    oldest = 1.1 * option("grpc-max-connection-age") / 1000
    assert float(stop[1]) > oldest + 30 + 10
    assert container("gpu")["livenessProbe"]["terminationGracePeriodSeconds"] < oldest, "a dead one need not"
    grace = pod("gpu")["terminationGracePeriodSeconds"]
    assert grace > float(stop[1]) + option("exit-timeout-secs") + 10


def test_the_tunings_are_there():
    assert {overlay: environment(overlay)["MODEL_CONFIG_NAME"] for overlay in OVERLAYS} == {
        "gpu": "gpu",
        "gpu-tls": "gpu",
        "gpu-next": "gpu",
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
    assert data in (PROJECT / "deploy" / "docker" / "perf_analyzer.Dockerfile").read_text()


def test_no_file_is_left_out():
    """A manifest that no kustomization names is applied by nobody."""
    for path in KUSTOMIZATIONS.rglob("*.yaml"):
        if path.name == "kustomization.yaml":
            continue
        listed = yaml.safe_load((path.parent / "kustomization.yaml").read_text())
        assert path.name in listed.get("resources", []) + listed.get("patchesStrategicMerge", []), path
    overlays = subprocess.check_output(["git", "ls-files", "deploy/k8s/overlays"], cwd=PROJECT, text=True)
    assert {Path(name).parts[3] for name in overlays.split()} == set(OVERLAYS)


def test_probes_are_asked_at_the_right_ports_and_patiently():
    probes = container("gpu")
    for name in ("startupProbe", "readinessProbe"):
        assert probes[name]["httpGet"]["port"] == "http"
    start = probes["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] >= 180, "torch and CUDA from a cold disk"
    assert probes["livenessProbe"]["timeoutSeconds"] >= probe.ANSWER_SECONDS + 1, "Python starts first"
    assert probes["livenessProbe"]["failureThreshold"] >= 2
    assert probes["readinessProbe"]["timeoutSeconds"] >= 2


def test_a_dead_pod_is_noticed_and_replaced_in_time():
    """Reckoned from the manifest; tests/deploy/test_probes.py measures the notice."""
    liveness, start = container("gpu")["livenessProbe"], container("gpu")["startupProbe"]
    looks = liveness["failureThreshold"] * liveness["periodSeconds"]
    one_look = 1
    noticed = {"stub": probe.STALE_SECONDS + looks + one_look, "server": looks + liveness["timeoutSeconds"]}
    assert max(noticed.values()) < 20
    # The kubelet gives SIGTERM 2 s when preStop has used up the grace; the server starts in 7 s.
    replaced = (
        max(noticed.values()) + liveness["terminationGracePeriodSeconds"] + 2 + 7 + start["periodSeconds"]
    )
    assert replaced <= 45


def test_who_may_reach_which_port():
    callers, prometheus = objects("gpu")["NetworkPolicy", "triton-face"]["spec"]["ingress"]
    assert callers["ports"] == [{"port": "grpc"}]
    assert callers["from"] == [
        {"namespaceSelector": {}, "podSelector": {"matchLabels": {"triton-face-client": "true"}}}
    ]
    assert prometheus["ports"] == [{"port": "metrics"}]
    assert list(prometheus["from"][0]) == ["namespaceSelector"]
    (scraped,) = objects("gpu")["PodMonitor", "triton-face"]["spec"]["podMetricsEndpoints"]
    assert scraped["port"] == "metrics"
    assert int(scraped["interval"].removesuffix("s")) <= 15, "four samples in the rules' shortest window"


def test_nothing_goes_out_and_applying_twice_changes_nothing():
    """The API server drops an empty list of rules: with one, each apply would report a change."""
    spec = objects("gpu")["NetworkPolicy", "triton-face"]["spec"]
    assert "Egress" in spec["policyTypes"]
    assert "egress" not in spec


def test_pods_come_and_go_a_few_at_a_time():
    found = objects("gpu")
    assert found["PodDisruptionBudget", "triton-face"]["spec"]["maxUnavailable"] == 1
    rollout = found["Deployment", "triton-face"]["spec"]["strategy"]["rollingUpdate"]
    assert rollout["maxUnavailable"] == 0
    scaled = found["HorizontalPodAutoscaler", "triton-face"]["spec"]
    assert scaled["minReplicas"] >= 2
    assert scaled["maxReplicas"] >= 10 * scaled["minReplicas"], "else it is no fleet"
    assert scaled["behavior"]["scaleDown"]["stabilizationWindowSeconds"] >= 300
    assert scaled["behavior"]["scaleUp"]["stabilizationWindowSeconds"] == 0
    for name in ("triton-face", "triton-face-pods"):
        assert not found["Service", name]["spec"].get("publishNotReadyAddresses")


def test_what_a_read_only_root_needs():
    mounts = {mount["mountPath"] for mount in container("gpu")["volumeMounts"]}
    assert {"/tmp", "/dev/shm"} <= mounts
    assert pod("gpu")["securityContext"]["fsGroup"] == pod("gpu")["securityContext"]["runAsGroup"], "keys"
    for overlay in OVERLAYS:
        (namespace,) = [one for (kind, _), one in objects(overlay).items() if kind == "Namespace"]
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
