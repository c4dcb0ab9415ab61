"""client/pyproject.toml holds the project's version; other files repeat it."""

import re
from importlib.metadata import version

from deploy.local.server import PROJECT

IMAGE_TAG = r"triton-face-(?:features|perf):|newTag: |^version: "


def test_citation_manifests_and_docs_name_the_version_of_the_client():
    files = [
        PROJECT / "CITATION.cff",
        *(PROJECT / "deploy").rglob("*.yaml"),
        *(PROJECT / "docs").glob("*.md"),
    ]
    named = {
        (str(path.relative_to(PROJECT)), found)
        for path in files
        for found in re.findall(rf"(?:{IMAGE_TAG})(\d[\w.]*)", path.read_text(), re.MULTILINE)
    }
    assert len(named) > 4
    assert {found for _, found in named} == {version("triton-face-client")}, sorted(named)
