"""Code injected into a copied model: it runs before or after calls of a function, to make them fail."""

import textwrap
from pathlib import Path

WRAPPER = """

def _wrap(original):
    def wrapper(*args, **kwargs):
        import time
        from pathlib import Path

{before}
        try:
            return original(*args, **kwargs)
        finally:
{after}

    return wrapper


{function} = _wrap({function})
"""


def wrap_function(module: Path, function: str, before: str = "pass", after: str = "pass") -> None:
    """Append code to a Python file that wraps one of its functions.

    Parameters
    ----------
    module : Path
        File in a copy of the repository; the original must not change.
    function : str
        Name of the function, or `Class.method`.
    before, after : str
        Statements to run before and after each call. `args` has the call's arguments.
    """
    body = {"before": textwrap.indent(textwrap.dedent(before), 8 * " ")}
    body["after"] = textwrap.indent(textwrap.dedent(after), 12 * " ")
    with module.open("a") as code:
        code.write(WRAPPER.format(function=function, **body))
