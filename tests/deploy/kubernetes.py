"""The manifests as Kustomize renders them."""

import os
import shutil
import subprocess
from pathlib import Path

import yaml

from deploy.local.server import PROJECT
from tests.support.prometheus import UNPACKED

KUSTOMIZATIONS = PROJECT / "deploy" / "k8s"
OVERLAYS = ("gpu", "cpu", "dev", "gpu-tls", "gpu-next")


def kubectls() -> list[str]:
    """Return every kubectl there is: Debian's, which `make` unpacks, and the machine's own."""
    places = [str(UNPACKED), os.environ["PATH"]]
    return [found for place in places if (found := shutil.which("kubectl", path=place))]


def folder(name: str) -> Path:
    """Return the folder of an overlay, or of the load generator."""
    return KUSTOMIZATIONS / name if name == "perf-analyzer" else KUSTOMIZATIONS / "overlays" / name


def rendered(name: str, kubectl: str) -> str:
    """Return what `kubectl kustomize` makes of an overlay."""
    done = subprocess.run([kubectl, "kustomize", folder(name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(name: str, kubectl: str | None = None) -> dict[tuple[str, str], dict]:
    """Return an overlay's objects by kind and name."""
    found = yaml.safe_load_all(rendered(name, kubectl or kubectls()[0]))
    return {(one["kind"], one["metadata"]["name"]): one for one in found}
