"""Checkpoints of py-feat's AU classifiers, with py-feat's own outputs, made in py-feat's environment."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[1] / "tools" / "make_au_checkpoint.py"

_FOUR = "--names AU1 AU7 AU11 AU4"

VARIANTS = {
    "xgb": "",
    "xgb_isotonic": f"--calibrators isotonic --uneven --whiten --main-module --compress --seed 2 {_FOUR}",
    "xgb_isotonic_nan": f"--calibrators isotonic --out-of-bounds nan --no-mean --seed 3 {_FOUR}",
    "xgb_sigmoid": f"--calibrators sigmoid --no-std --gamma 3 --tree-method exact --seed 4 {_FOUR}",
    "xgb_early_stopping": f"--early-stopping --trees 40 --no-std --no-mean --depth 7 --seed 5 {_FOUR}",
    "svm": "--kind svm --uneven --whiten --seed 6",
    "svc": "--kind svm --svc --seed 7 --features 300 --names AU1 AU2 AU12 AU43",
}
"""Options of `make_au_checkpoint.py` by name. Without --names a checkpoint has py-feat's 20 AUs."""


@pytest.fixture(scope="session")
def au_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the `.skops` files of `VARIANTS`; py-feat's outputs are in the `.npz` beside each.

    The processes of pytest-xdist share the files.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "au_checkpoints"
    folder.mkdir(exist_ok=True)
    paths = {name: folder / f"{name}.skops" for name in VARIANTS}
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            make_au_checkpoints({paths[name]: options for name, options in VARIANTS.items()})
            (folder / "complete").touch()
    return paths


def make_au_checkpoints(options: dict[Path, str]) -> None:
    """Make checkpoints in py-feat's environment.

    Parameters
    ----------
    options : dict of Path to str
        The `.skops` files and the options of `make_au_checkpoint.py`.
    """
    python = Path(os.environ.get("PYFEAT_PYTHON", f"{sys.prefix}-parity/bin/python"))
    if not python.exists():
        target = f"{Path(sys.prefix).name}-parity/bin/.installed"
        pytest.fail(f"{python}, the Python of py-feat's environment, is missing: run `make {target}`")
    arguments: list[str | Path] = []
    for path, text in options.items():
        arguments += ["--", path, *text.split()]
    made = subprocess.run(
        [python, "-W", "ignore", TOOL, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
