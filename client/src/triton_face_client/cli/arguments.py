"""The command line's arguments."""

import argparse
import os
from importlib.metadata import version
from pathlib import Path

from triton_face_client.base_client import DEFAULT_URL
from triton_face_client.pyfeat import URL_VARIABLE
from triton_face_client.transports.channel import Tls
from triton_face_client.video.face_chunks import Cropping

DISTRIBUTION = "triton-face-client"

EXIT_CODES = """\
exit codes:
  0    done; faces that were refused are in the output, with the reason
  2    the command line is not understood
  3    a file, table, image or video cannot be used, or an output cannot be written
  4    the server is not there, not ready, or failed
  130  interrupted; `run` goes on where it stopped when called again
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of `triton-face`."""
    whole = argparse.ArgumentParser(
        prog="triton-face",
        description="AU features and head pose from a triton-face-features server.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"%(prog)s {version(DISTRIBUTION)}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared = _shared()
    for name, add, text in (
        ("info", None, "the server, its models, their statistics"),
        ("run", _add_run, "a landmark table and its images or video to a file of features"),
        ("plot", _add_plot, "a picture of one face, or a contact sheet of many"),
        ("bench", _add_bench, "a quick load with percentiles"),
    ):
        command = commands.add_parser(
            name,
            parents=[shared],
            help=text,
            description=text,
            epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if add is not None:
            add(command)
    return whole


def tls(arguments: argparse.Namespace) -> Tls | None:
    """Return the TLS settings; any of its options means TLS."""
    given = [arguments.root_certificates, arguments.certificate_chain, arguments.private_key]
    if not (arguments.tls or any(given) or arguments.server_name):
        return None
    return Tls(*given, server_name=arguments.server_name)


def _shared() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print one JSON object")
    server = shared.add_argument_group("server")
    server.add_argument(
        "--url",
        action="append",
        metavar="HOST:PORT",
        help=f"gRPC endpoint; again for servers that take turns (${URL_VARIABLE}, else {DEFAULT_URL})",
    )
    server.add_argument("--wait", type=_positive, metavar="SECONDS", help="wait for the server to be ready")
    server.add_argument(
        "--timeout", type=_positive, default=60.0, metavar="SECONDS", help="of one request (60)"
    )
    server.add_argument(
        "--retry",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="how long to send again while the server is away or full (60; 0 never)",
    )
    server.add_argument("--shm", action="store_true", help="shared memory, to a server on this machine")
    server.add_argument("--header", action="append", type=_header, metavar="NAME=VALUE", default=[])
    server.add_argument("--tls", action="store_true", help="encrypt; implied by the options below")
    server.add_argument("--root-certificates", type=Path, metavar="PEM")
    server.add_argument("--certificate-chain", type=Path, metavar="PEM", help="the client's own (mTLS)")
    server.add_argument("--private-key", type=Path, metavar="PEM")
    server.add_argument("--server-name", metavar="NAME", help="the name in the server's certificate")
    return shared


def urls(arguments: argparse.Namespace) -> list[str]:
    """Return the addresses given, or the default ones."""
    return arguments.url or os.environ.get(URL_VARIABLE, DEFAULT_URL).split(",")


def _add_media(command: argparse.ArgumentParser, files: str) -> None:
    command.add_argument("media", type=Path, nargs=files, help="a video, images, or a folder of images")
    command.add_argument(
        "--landmarks",
        type=Path,
        required=True,
        metavar="TABLE",
        help="OpenFace or py-feat CSV, Parquet (also of run), or NPZ with landmarks [N, 68, 2], frame [N]",
    )

    command.add_argument(
        "--crop",
        choices=("landmarks", "face-rect"),
        default="landmarks",
        help="cut by the box of the landmarks, or by py-feat's FaceRect columns, as py-feat itself does",
    )
    command.add_argument(
        "--enlarge",
        type=_positive,
        metavar="FACTOR",
        help="of the box (1.2; of face-rect 1, which is enlarged already)",
    )


def cropping(arguments: argparse.Namespace) -> Cropping:
    """Return which part of the image is a face's crop."""
    usual = Cropping().enlarge if arguments.crop == "landmarks" else 1.0
    return Cropping(arguments.crop, arguments.enlarge or usual)


def _add_run(command: argparse.ArgumentParser) -> None:
    _add_media(command, "+")
    command.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="features, .parquet, .csv or .npz"
    )
    command.add_argument("--restart", action="store_true", help="replace what is there, begin anew")


def _add_plot(command: argparse.ArgumentParser) -> None:
    _add_media(command, "*")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="picture, .png, .pdf, .svg")
    command.add_argument("--count", type=_whole, default=24, help="faces of the sheet, spread evenly (24)")
    command.add_argument("--rows", type=_rows, metavar="N,N,...", help="these rows of the table, from 0")


def _add_bench(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seconds", type=_positive, default=5.0, help="length of the load (5)")
    command.add_argument("--batch", type=_whole, default=8, metavar="FACES", help="faces a request (8)")
    command.add_argument(
        "--concurrency", type=_whole, default=4, metavar="REQUESTS", help="closed loop: at a time (4)"
    )
    command.add_argument("--rate", type=_positive, metavar="FACES", help="open loop: faces a second")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return value


def _positive(text: str) -> float:
    value = _seconds(text)
    if not value:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _rows(text: str) -> list[int]:
    return [int(row) for row in text.split(",")]


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value
