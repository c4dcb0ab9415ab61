"""`python -m docs.check_links FOLDER`: check the links of a built HTML site.

Every relative link and its anchor must exist, and pages may load files only from the site itself.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Parser of one HTML page.

    Attributes
    ----------
    anchors : set of str
        Anchors that a link can name.
    links : list of str
        URLs of the links.
    resources : list of str
        URLs of images, scripts and style sheets.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.resources: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the anchors and URLs of one tag."""
        attributes = {name: value or "" for name, value in attrs}
        self.anchors |= {attributes[name] for name in ("id", "name") if name in attributes}
        if "src" in attributes or (tag == "link" and "href" in attributes):
            self.resources.append(attributes.get("src") or attributes["href"])
        elif "href" in attributes:
            self.links.append(attributes["href"])


def find_problems(folder: Path) -> list[str]:
    """Return one line for each broken link, and for each resource that a page loads from another site."""
    pages = {path.resolve(): Page(path) for path in folder.rglob("*.html")}
    problems = []
    for path, page in pages.items():
        name = path.relative_to(folder.resolve())
        external = [resource for resource in page.resources if urlsplit(resource).netloc]
        problems += [f"{name}: loads {resource} from another site" for resource in external]
        for link in page.links + page.resources:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            anchor = unquote(url.fragment)
            if not target.is_file():
                problems.append(f"{name}: {link}: no such file")
            elif anchor and target in pages and anchor not in pages[target].anchors:
                problems.append(f"{name}: {link}: no such anchor")
    return problems


def main(folder: Path) -> int:
    """Print the problems of the site in `folder`. Return the exit status: 1 if there are any, else 0."""
    problems = find_problems(folder)
    print("\n".join(problems) or f"{folder}/index.html: all links have a target")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
