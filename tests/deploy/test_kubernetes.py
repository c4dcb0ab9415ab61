"""The manifests are valid and consistent with the server, the models and each other."""

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
from tests.deploy.production_server import SERVE, ProductionServer

VERSIONS = ("1.30", "1.34", "1.37")
"""Versions of Kubernetes: the oldest supported, one between, and the newest that the validator knows."""

OPERATOR_KINDS = ("PodMonitor", "PrometheusRule")
"""Kinds of the Prometheus Operator, which the validator does not know."""

MEBIBYTES = {"Mi": 1, "Gi": 1024}


def pod(overlay: str) -> dict:
    return objects(overlay)["Deployment", "triton-face"]["spec"]["template"]["spec"]


def container(overlay: str) -> dict:
    (only,) = pod(overlay)["containers"]
    return only


def environment(overlay: str) -> dict[str, str]:
    return {variable["name"]: variable.get("value") for variable in container(overlay)["env"]}


def mebibytes(quantity: str) -> int:
    return int(quantity[:-2]) * MEBIBYTES[quantity[-2:]]


def validate(manifest: Path, version: str) -> "subprocess.CompletedProcess[str]":
    validator = Path(sys.executable).parent / "kubernetes-validate"
    command = [validator, "--strict", "--kubernetes-version", version, manifest]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_every_kubectl_renders_the_same_objects_without_warnings(kustomization: str):
    assert kubectls(), "no kubectl: `make deploy-check` unpacks Debian's package kubernetes-client"
    first, *others = (rendered(kustomization, kubectl) for kubectl in kubectls())
    assert first
    assert all(other == first for other in others)


@pytest.mark.parametrize("version", VERSIONS)
def test_objects_match_the_schemas_of_kubernetes(version: str, tmp_path: Path):
    found = [
        item
        for kustomization in KUSTOMIZATIONS
        for (kind, _), item in rendered(kustomization, kubectls()[0]).items()
        if kind not in OPERATOR_KINDS
    ]
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text(yaml.safe_dump_all(found))
    done = validate(manifest, version)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count(" passed for resource") == len(found)


def test_validator_rejects_misspelt_field(tmp_path: Path):
    deployment = yaml.safe_load(yaml.safe_dump(objects("dev")["Deployment", "triton-face"]))
    deployment["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    (tmp_path / "misspelt.yaml").write_text(yaml.safe_dump(deployment))
    assert validate(tmp_path / "misspelt.yaml", VERSIONS[0]).returncode != 0


def test_every_manifest_belongs_to_a_kustomization():
    for path in (PROJECT / "deploy" / "k8s").rglob("*.yaml"):
        fields = yaml.safe_load((path.parent / "kustomization.yaml").read_text())
        used = fields["resources"] + [patch["path"] for patch in fields.get("patches", [])]
        assert path.name in [*used, "kustomization.yaml"], path


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_has_one_namespace_that_enforces_restricted_pods(overlay: str):
    (namespace,) = [item for (kind, _), item in objects(overlay).items() if kind == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    others = [item for (kind, _), item in objects(overlay).items() if kind != "Namespace"]
    assert {item["metadata"]["namespace"] for item in others} == {namespace["metadata"]["name"]}


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_pods_have_no_privileges(kustomization: str):
    found = rendered(kustomization, kubectls()[0])
    (workload,) = [item for (kind, _), item in found.items() if kind in ("Deployment", "Job")]
    spec = workload["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    (only,) = spec["containers"]
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_selectors_match_the_pods():
    found = objects("gpu")
    labels = found["Deployment", "triton-face"]["spec"]["template"]["metadata"]["labels"]
    selectors = [found["Service", name]["spec"]["selector"] for name in ("triton-face", "triton-face-pods")]
    for kind in ("PodDisruptionBudget", "PodMonitor"):
        selectors.append(found[kind, "triton-face"]["spec"]["selector"]["matchLabels"])
    selectors.append(found["NetworkPolicy", "triton-face"]["spec"]["podSelector"]["matchLabels"])
    assert all(selector.items() <= labels.items() for selector in selectors)


def test_autoscaler_alone_sets_the_number_of_pods():
    deployment = objects("gpu")["Deployment", "triton-face"]
    target = objects("gpu")["HorizontalPodAutoscaler", "triton-face"]["spec"]["scaleTargetRef"]
    assert target == {name: deployment[name] for name in ("apiVersion", "kind")} | {"name": "triton-face"}
    assert "replicas" not in deployment["spec"]


def test_callers_reach_grpc_and_prometheus_reaches_metrics_only():
    services = [item for (kind, _), item in objects("gpu").items() if kind == "Service"]
    ports = [port["targetPort"] for service in services for port in service["spec"]["ports"]]
    assert ports == ["grpc", "grpc"]
    policy = objects("gpu")["NetworkPolicy", "triton-face"]["spec"]
    callers, prometheus = policy["ingress"]
    assert callers["ports"] == [{"port": "grpc"}]
    assert callers["from"][0]["podSelector"] == {"matchLabels": {"triton-face-client": "true"}}
    assert prometheus["ports"] == [{"port": "metrics"}]
    assert "podSelector" not in prometheus["from"][0]
    # The API server removes empty lists, so with `egress: []` every apply would report a change.
    assert "Egress" in policy["policyTypes"]
    assert "egress" not in policy


def test_load_generator_reaches_the_service():
    found = rendered("k8s/perf-analyzer", kubectls()[0])["Job", "perf-analyzer"]["spec"]["template"]
    policy = objects("gpu")["NetworkPolicy", "triton-face"]["spec"]["ingress"][0]
    assert policy["from"][0]["podSelector"]["matchLabels"].items() <= found["metadata"]["labels"].items()
    arguments = found["spec"]["containers"][0]["args"]
    name, _, port = arguments[arguments.index("-u") + 1].partition(":")
    assert int(port) in [entry["port"] for entry in objects("gpu")["Service", name]["spec"]["ports"]]


def test_only_tls_pods_require_a_secret():
    found = {kind for name in KUSTOMIZATIONS for kind, _ in rendered(name, kubectls()[0])}
    assert "Secret" not in found, "a key in the repository"
    (key,) = [variable for variable in container("gpu")["env"] if variable["name"] == "ADMIN_KEY"]
    assert key["valueFrom"]["secretKeyRef"]["optional"]
    (tls,) = [volume for volume in pod("gpu-tls")["volumes"] if "secret" in volume]
    assert not tls["secret"].get("optional"), "a pod without certificate must not serve without TLS"
    mounts = {mount["name"]: mount["mountPath"] for mount in container("gpu-tls")["volumeMounts"]}
    assert mounts[tls["name"]] == environment("gpu-tls")["TLS_FOLDER"]


def test_only_action_unit_pods_mount_a_claim():
    claims = {
        overlay: volume["persistentVolumeClaim"]
        for overlay in OVERLAYS
        for volume in pod(overlay)["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == {"cpu-action-units": {"claimName": "triton-face-action-units", "readOnly": True}}
    mounts = {mount["name"]: mount for mount in container("cpu-action-units")["volumeMounts"]}
    assert mounts["action-units"]["readOnly"]
    assert f"AU_REPOSITORY:-{mounts['action-units']['mountPath']}}}" in SERVE.read_text()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_gpu_overlays_use_a_gpu(overlay: str):
    is_gpu = environment(overlay)["MODEL_CONFIG_NAME"] == "gpu"
    assert is_gpu == overlay.startswith("gpu")
    assert is_gpu == ("nvidia.com/gpu" in container(overlay)["resources"].get("limits", {}))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_shared_memory_holds_the_largest_request_of_every_stub_process(overlay: str):
    """A volume in memory counts against the container's memory limit."""
    volumes = {volume["name"]: volume for volume in pod(overlay)["volumes"]}
    profile = environment(overlay)["MODEL_CONFIG_NAME"]
    path = DEFAULT_REPOSITORY / "align_mask" / (f"configs/{profile}.pbtxt" if profile else "config.pbtxt")
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    stubs = sum(group.count for group in config.instance_group)
    size = mebibytes(volumes["shared-memory"]["emptyDir"]["sizeLimit"])
    frames_bytes = int(config.parameters["max_request_pixels"].string_value) * 3 * 4
    assert stubs * (STUB_MEMORY_BYTES + frames_bytes) / 2**20 <= size, "the largest request of every instance"
    assert size < mebibytes(container(overlay)["resources"]["limits"]["memory"]) / 2


def test_pod_stops_after_its_connections_and_requests_have_ended(production: ProductionServer):
    options = production.options()
    oldest_connection = 1.1 * int(options["grpc-max-connection-age"]) / 1000  # gRPC adds up to a tenth
    sleep, seconds = container("gpu")["lifecycle"]["preStop"]["exec"]["command"]
    dns_cache, endpoint_updates = 30, 10
    assert sleep == "sleep"
    assert float(seconds) > oldest_connection + dns_cache + endpoint_updates
    grace = pod("gpu")["terminationGracePeriodSeconds"]
    assert grace > float(seconds) + int(options["exit-timeout-secs"]) + 10


def test_probes_have_enough_time():
    probes = container("gpu")
    start = probes["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] >= 180, (
        "loading torch and CUDA from a cold disk"
    )
    assert probes["livenessProbe"]["timeoutSeconds"] >= probe.ANSWER_SECONDS + 1, "time to start Python"
