"""client/pyproject.toml holds the project's version; other files repeat it."""

import re
from importlib.metadata import version
from pathlib import Path

from deploy.local.server import PROJECT

VERSION = re.compile(r"(?:triton-face-(?:features|perf):|newTag: |^version: )(\d[\w.]*)", re.MULTILINE)


def versions_in(path: Path) -> list[tuple[str, str]]:
    return [(str(path.relative_to(PROJECT)), found) for found in VERSION.findall(path.read_text())]


def test_citation_manifests_and_docs_name_the_version_of_the_client():
    files = [PROJECT / "CITATION.cff", *PROJECT.glob("deploy/**/*.yaml"), *PROJECT.glob("docs/*.md")]
    # The example of an upgrade deploys the version after this one.
    found = [pair for path in files if path.parent.name != "gpu-next" for pair in versions_in(path)]
    assert len(found) > 4
    assert {named for _, named in found} == {version("triton-face-client")}, found
