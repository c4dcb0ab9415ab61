"""Python scripts in a private mount namespace, where a folder is a small file system."""

import os
import shlex
import subprocess
import sys

import pytest

from deploy.local.server import PROJECT

NAMESPACE = ("unshare", "--mount", "--map-root-user")


def run_with_small_file_system(
    folder: str, megabytes: int, script: str, *arguments: str, timeout: float = 180, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run a Python script that sees a tmpfs of some megabytes on `folder`; other processes do not see it.

    `arguments` are those of the script, `environment` has further variables. If the system forbids mount
    namespaces, as some containers do, the test is skipped.
    """
    if subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system forbids mount namespaces (unshare --mount --map-root-user)")
    command = shlex.join([sys.executable, "-c", script, *arguments])
    mount = f"mount -t tmpfs -o size={megabytes}m tmpfs {shlex.quote(folder)}"
    return subprocess.run(
        [*NAMESPACE, "sh", "-c", f"{mount} && exec {command}"],
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": f"{PROJECT}:{PROJECT / 'client' / 'src'}"} | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
