"""`python -m docs.make_api_pages FOLDER`: the client's reference as HTML, made from its docstrings."""

import pkgutil
import sys
from pathlib import Path

import pdoc

import triton_face_client


def main(folder: Path) -> None:
    """Write a page for each module of the client, and an index."""
    names = [
        module.name for module in pkgutil.walk_packages(triton_face_client.__path__, "triton_face_client.")
    ]
    modules = [name for name in names if not name.endswith("__main__")]
    pdoc.render.configure(docformat="numpy", show_source=False)
    pdoc.pdoc("triton_face_client", *modules, output_directory=folder)
    print(f"{folder / 'index.html'}: {len(modules) + 1} modules")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
