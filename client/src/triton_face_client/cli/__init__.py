"""The command `triton-face`: it only reads arguments, calls what does the work, and reports."""

import argparse
import asyncio
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from triton_face_client.async_client import AsyncFaceFeatureClient
from triton_face_client.cli import arguments as command_line
from triton_face_client.client import FaceFeatureClient
from triton_face_client.errors import FaceServiceError
from triton_face_client.requests.retry import Retry
from triton_face_client.video.media import find_media

BAD_INPUT = 3
NO_SERVICE = 4
INTERRUPTED = 130
"""As shells have it for a command that Ctrl-C has ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code (`arguments.EXIT_CODES`)."""
    given = command_line.parser().parse_args(argv)
    try:
        report, text = COMMANDS[given.command](given)
    except FaceServiceError as error:
        return _failed(given, f"{error.message()}{_what_is_kept(given)}", NO_SERVICE)
    # Every file, table and setting that cannot be used is a ValueError with one line.
    except (ValueError, OSError) as error:
        return _failed(given, str(error), BAD_INPUT)
    except ImportError as error:
        return _failed(given, f"{error}: {INSTALL[given.command]}", BAD_INPUT)
    except KeyboardInterrupt:
        return _failed(given, f"interrupted{_what_is_kept(given)}", INTERRUPTED)
    print(json.dumps(dataclasses.asdict(report)) if given.json else text)
    return 0


def _info(given: argparse.Namespace) -> tuple[Any, str]:
    from triton_face_client.cli.info import as_text, info

    with _client(given) as client:
        report = info(client)
    return report, as_text(report)


def _run(given: argparse.Namespace) -> tuple[Any, str]:
    # Here and not above, as in the other commands: each needs an extra of its own.
    from triton_face_client.cli.run import as_text, run

    cropping = command_line.cropping(given)
    with _client(given) as client:
        report = run(client, find_media(given.media), given.landmarks, given.out, given.restart, cropping)
    return report, as_text(report)


def _plot(given: argparse.Namespace) -> tuple[Any, str]:
    from triton_face_client.cli.plot import as_text, plot

    cropping = command_line.cropping(given)
    with _client(given) as client:
        report = plot(
            client, find_media(given.media), given.landmarks, given.out, given.count, given.rows, cropping
        )
    return report, as_text(report)


def _bench(given: argparse.Namespace) -> tuple[Any, str]:
    from triton_face_client.cli.bench import Load, as_text, bench

    async def measure() -> Any:
        settings = _settings(given) | {"batch_size": given.batch, "retry": Retry(seconds=0)}
        async with AsyncFaceFeatureClient(**settings) as client:
            if given.wait:
                await client.wait_until_ready(given.wait)
            return await bench(client, Load(given.seconds, given.batch, given.concurrency, given.rate))

    report = asyncio.run(measure())
    return report, as_text(report)


COMMANDS = {"info": _info, "run": _run, "plot": _plot, "bench": _bench}

INSTALL = {
    "info": "pip install triton-face-client",
    "run": "pip install 'triton-face-client[run]'",
    "plot": "pip install 'triton-face-client[plot]'",
    "bench": "pip install triton-face-client",
}


def _client(given: argparse.Namespace) -> FaceFeatureClient:
    client = FaceFeatureClient(**_settings(given))
    if given.wait:
        client.wait_until_ready(given.wait)
    return client


def _settings(given: argparse.Namespace) -> dict[str, Any]:
    return {
        "url": command_line.urls(given),
        "tls": command_line.tls(given),
        "headers": dict(given.header),
        "timeout": given.timeout,
        "retry": Retry(seconds=given.retry),
        "shm": given.shm,
    }


def _what_is_kept(given: argparse.Namespace) -> str:
    """Say that an unfinished run can go on, where it can."""
    if given.command != "run":
        return ""
    from triton_face_client.video.feature_files import parts_folder

    folder = parts_folder(given.out)
    command = "without --restart the command" if given.restart else "the same command"
    return f"; what is done is kept in {folder}, {command} goes on there" * folder.exists()


def _failed(given: argparse.Namespace, message: str, code: int) -> int:
    line = " ".join(message.split())
    if given.json:
        print(json.dumps({"error": line, "exit_code": code}))
    print(f"triton-face {given.command}: {line}", file=sys.stderr)
    return code
