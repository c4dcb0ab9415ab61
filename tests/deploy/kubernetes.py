"""The manifests, rendered by Kustomize once for each test session."""

import functools
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import yaml

from deploy.local.server import PROJECT
from tests.support.prometheus import UNPACKED

OVERLAYS = ("gpu", "cpu", "dev", "gpu-tls", "gpu-next", "cpu-action-units")
KUSTOMIZATIONS = (*(f"k8s/overlays/{name}" for name in OVERLAYS), "k8s/perf-analyzer")


def kubectls() -> list[str]:
    """Return each existing kubectl: that on PATH and that unpacked from Debian's package."""
    paths = [os.environ["PATH"], str(UNPACKED)]
    return [program for path in paths if (program := shutil.which("kubectl", path=path))]


@functools.cache
def objects(overlay: str) -> dict[tuple[str, str], dict]:
    """Return an overlay's objects by kind and name."""
    return rendered(f"k8s/overlays/{overlay}", kubectls()[0])


@functools.cache
def rendered(kustomization: str, kubectl: str) -> dict[tuple[str, str], dict]:
    """Render a kustomization of deploy/ without warnings; return its objects by kind and name."""
    with tempfile.TemporaryDirectory() as folder:
        manifests = PROJECT / "deploy"
        if _minor_version(kubectl) < 21:
            manifests = _with_fields_of_kustomize_2(Path(folder))
        done = subprocess.run(
            [kubectl, "kustomize", manifests / kustomization], capture_output=True, text=True
        )
    assert (done.returncode, done.stderr) == (0, "")
    return {(item["kind"], item["metadata"]["name"]): item for item in yaml.safe_load_all(done.stdout)}


def _minor_version(kubectl: str) -> int:
    shown = subprocess.check_output([kubectl, "version", "--client", "--output=json"], text=True)
    return int(json.loads(shown)["clientVersion"]["minor"].rstrip("+"))


def _with_fields_of_kustomize_2(folder: Path) -> Path:
    """Copy the kustomizations with the old names of their fields, which kubectl 1.20 of Debian 12 needs."""
    for name in ("k8s", "monitoring"):
        shutil.copytree(PROJECT / "deploy" / name, folder / name)
    for path in folder.rglob("kustomization.yaml"):
        fields = yaml.safe_load(path.read_text())
        resources = fields["resources"]
        fields["resources"] = [name for name in resources if name.endswith(".yaml")]
        fields["bases"] = [name for name in resources if not name.endswith(".yaml")]
        fields["patchesStrategicMerge"] = [patch["path"] for patch in fields.pop("patches", [])]
        path.write_text(yaml.safe_dump(fields))
    return folder
