"""Carries a Dockerfile's build out without a container engine: its COPY and RUN lines, in a folder.

There is neither NVIDIA's image nor a container engine on the machines that run these tests. What can be tried
of the build is: whether its sources reach the builder, whether its commands run in a Python that has nothing
else, and whether what they leave serves.
"""

import dataclasses
import fnmatch
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from deploy.local.server import PROJECT

DOCKERFILE = PROJECT / "deploy" / "docker" / "Dockerfile"
PERF_DOCKERFILE = DOCKERFILE.with_name("perf_analyzer.Dockerfile")
DOCKERIGNORE = PROJECT / ".dockerignore"

ROOTS = ("/opt", "/build", "/tmp")
"""Absolute folders of the image that its lines name; here they lie in the image's folder."""


@dataclasses.dataclass
class Stage:
    """One FROM of a Dockerfile.

    Attributes
    ----------
    base, name : str
        `FROM base AS name`; the name is empty without one.
    steps : list of (str, str)
        The instructions that follow and their arguments, continued lines joined.
    """

    base: str
    name: str
    steps: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def arguments(self, instruction: str) -> list[str]:
        """Return the arguments of each line of a kind."""
        return [given for name, given in self.steps if name == instruction]

    @property
    def environment(self) -> dict[str, str]:
        """Return what ENV sets."""
        return dict(re.findall(r"(\w+)=(\S+)", " ".join(self.arguments("ENV"))))


def stages(dockerfile: Path = DOCKERFILE) -> list[Stage]:
    """Read a Dockerfile."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: list[Stage] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, arguments = line.partition(" ")
        if instruction == "FROM":
            base, _, name = arguments.partition(" AS ")
            found.append(Stage(base, name))
        elif found:
            found[-1].steps.append((instruction, arguments.strip()))
    return found


def context(folder: Path) -> Path:
    """Copy what `.dockerignore` lets through, of what git has or would take."""
    patterns = [line for line in DOCKERIGNORE.read_text().splitlines() if line and not line.startswith("#")]
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listed, cwd=PROJECT, text=True).splitlines():
        if not _is_ignored(name, patterns) and (PROJECT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, target)
    return folder


def _is_ignored(name: str, patterns: list[str]) -> bool:
    """Tell as Docker does: the last pattern that matches the file or a folder above it decides."""
    ancestors = [name, *(str(parent) for parent in Path(name).parents)]
    ignored = False
    for pattern in patterns:
        wanted = pattern.removeprefix("!")
        if any(fnmatch.fnmatchcase(one, wanted.removeprefix("**/")) for one in ancestors if one != "."):
            ignored = not pattern.startswith("!")
    return ignored


class Image:
    """What a stage leaves, in a folder.

    Parameters
    ----------
    root : Path
        A new folder for it.
    base : Image, optional
        The stage that it begins with; without one a Python with pip and nothing else, as NVIDIA's image has.
    others : dict of str to Image
        What `COPY --from` may name.

    Attributes
    ----------
    environment : dict of str to str
        What a process in the image would have.
    """

    def __init__(
        self, root: Path, base: "Image | None" = None, others: "dict[str, Image] | None" = None
    ) -> None:
        self.root = root
        self._others = others or {}
        if base is None:
            self._context = context(root / "context")
            self._folder = str(root)
            subprocess.run([sys.executable, "-m", "venv", root / "python"], check=True)
            inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
            self.environment = inherited
        else:
            # Links: packages are a gigabyte, and pip replaces files instead of changing them.
            shutil.copytree(base.root, root, copy_function=os.link, symlinks=True)
            self._context = base._context
            self._folder = base._folder.replace(str(base.root), str(root))
            self.environment = dict(base.environment)
        self.environment["PATH"] = f"{root / 'python' / 'bin'}:/usr/bin:/bin"

    def path(self, name: str) -> Path:
        """Return where a file of the image lies here."""
        return Path(self._here(name))

    def carry_out(self, stage: Stage) -> None:
        """Do what a stage's lines say."""
        for instruction, arguments in stage.steps:
            if instruction == "WORKDIR":
                self._folder = self._here(arguments)
                Path(self._folder).mkdir(parents=True, exist_ok=True)
            elif instruction == "COPY":
                self._copy(arguments)
            elif instruction == "RUN":
                self.run(arguments)
            elif instruction == "ENV":
                self.environment |= stage.environment
            elif instruction == "ARG" and "=" in arguments:
                name, _, default = arguments.partition("=")
                self.environment[name] = default

    def run(self, command: str) -> None:
        """Run a command of the shell in the image's environment."""
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-ec", self._here(command)],
            cwd=self._folder,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{command}\n{done.stdout}{done.stderr}")

    def _here(self, text: str) -> str:
        return re.sub(rf"(?<![\w./-])({'|'.join(ROOTS)})(?=/|\s|$)", rf"{self.root}\1", text)

    def _copy(self, arguments: str) -> None:
        words = [word for word in arguments.split() if not word.startswith("--")]
        stage = re.search(r"--from=(\w+)", arguments)
        for source in words[:-1]:
            origin = self._others[stage[1]].path(source) if stage else self._context / source
            target = Path(self._folder) / self._here(words[-1])
            if origin.is_dir():
                shutil.copytree(origin, target, dirs_exist_ok=True)
            else:
                into = target / origin.name if words[-1].endswith("/") else target
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(origin, into)


def built(folder: Path) -> dict[str, Image]:
    """Carry out every stage; return them by name."""
    images: dict[str, Image] = {}
    for stage in stages():
        images[stage.name] = Image(folder / stage.name, images.get(stage.base), images)
        images[stage.name].carry_out(stage)
    return images
