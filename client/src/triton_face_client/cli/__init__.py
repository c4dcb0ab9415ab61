"""The command `triton-face`: parse arguments, call the command's module, print its report."""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from triton_face_client.async_client import AsyncFaceFeatureClient
from triton_face_client.cli import arguments
from triton_face_client.client import FaceFeatureClient
from triton_face_client.errors import FaceServiceError
from triton_face_client.requests.retry import Retry
from triton_face_client.video.media import find_media

BAD_INPUT = 3
NO_SERVICE = 4
INTERRUPTED = 130
"""The shells' exit code for a command that Ctrl-C interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code (`arguments.EXIT_CODES`)."""
    options = arguments.parser().parse_args(argv)
    try:
        report, text = COMMANDS[options.command](options)
    except FaceServiceError as error:
        return _report_error(options, f"{error.message()}{_resume_hint(options)}", NO_SERVICE)
    # Unusable files, tables and settings raise a ValueError with a message of one line.
    except (ValueError, OSError) as error:
        return _report_error(options, str(error), BAD_INPUT)
    except ImportError as error:
        return _report_error(options, f"{error}: {INSTALL[options.command]}", BAD_INPUT)
    except KeyboardInterrupt:
        return _report_error(options, f"interrupted{_resume_hint(options)}", INTERRUPTED)
    try:
        print(json.dumps(dataclasses.asdict(report)) if options.json else text, flush=True)
    except BrokenPipeError:
        # The reader of a pipe ended early, as `head` does. Python flushes standard output again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


# Each function imports its command's module, because the commands need different extras.


def _info(options: argparse.Namespace) -> tuple[Any, str]:
    from triton_face_client.cli.info import as_text, info

    with _client(options) as client:
        report = info(client)
    return report, as_text(report)


def _run(options: argparse.Namespace) -> tuple[Any, str]:
    from triton_face_client.cli.run import as_text, run

    media, cropping = options.media, arguments.cropping(options)
    settings = _client_settings(options)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(_client(options))
        urls = settings["url"] if len(settings["url"]) > 1 else ()
        servers = [
            stack.enter_context(FaceFeatureClient(**settings | {"url": url, "shm": False})) for url in urls
        ]
        report = run(
            client,
            find_media(media),
            options.landmarks,
            options.out,
            options.restart,
            cropping,
            options.columns,
            servers,
        )
    return report, as_text(report)


def _plot(options: argparse.Namespace) -> tuple[Any, str]:
    from triton_face_client.cli.plot import as_text, plot

    cropping = arguments.cropping(options)
    with _client(options) as client:
        media = find_media(options.media)
        report = plot(client, media, options.landmarks, options.out, options.count, options.rows, cropping)
    return report, as_text(report)


def _bench(options: argparse.Namespace) -> tuple[Any, str]:
    from triton_face_client.cli.bench import Load, as_text, bench

    load = Load(options.seconds, options.batch, options.concurrency, options.rate, options.outputs)

    async def measure() -> Any:
        settings = _client_settings(options) | {"batch_size": options.batch, "retry": Retry(seconds=0)}
        async with AsyncFaceFeatureClient(**settings) as client:
            if options.wait:
                await client.wait_until_ready(options.wait)
            return await bench(client, load)

    report = asyncio.run(measure())
    return report, as_text(report)


COMMANDS = {"info": _info, "run": _run, "plot": _plot, "bench": _bench}

INSTALL = {
    "info": "pip install triton-face-client",
    "run": "pip install 'triton-face-client[run]'",
    "plot": "pip install 'triton-face-client[plot]'",
    "bench": "pip install triton-face-client",
}


def _client(options: argparse.Namespace) -> FaceFeatureClient:
    client = FaceFeatureClient(**_client_settings(options))
    if options.wait:
        client.wait_until_ready(options.wait)
    return client


def _client_settings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "url": arguments.urls(options),
        "tls": arguments.tls(options),
        "headers": dict(options.header),
        "timeout": options.timeout,
        "retry": Retry(seconds=options.retry),
        "shm": options.shm,
    }


def _resume_hint(options: argparse.Namespace) -> str:
    """Return a hint on resuming an unfinished run; an empty string if no run is unfinished."""
    if options.command != "run":
        return ""
    from triton_face_client.video.feature_files import parts_folder

    folder = parts_folder(options.out)
    if not folder.exists():
        return ""
    command = "the command without --restart" if options.restart else "the same command"
    return f"; {folder} keeps the finished rows: run {command} again to resume"


def _report_error(options: argparse.Namespace, message: str, code: int) -> int:
    line = " ".join(message.split())
    if options.json:
        print(json.dumps({"error": line, "exit_code": code}))
    print(f"triton-face {options.command}: {line}", file=sys.stderr)
    return code
