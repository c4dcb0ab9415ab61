"""The options of `triton-face`."""

import argparse
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from triton_face_client.base_client import DEFAULT_URL
from triton_face_client.pyfeat import URL_VARIABLE
from triton_face_client.transports.channel import Tls
from triton_face_client.video.face_chunks import DEFAULT_CROPPING, Cropping

DISTRIBUTION = "triton-face-client"

COLUMN_GROUPS = ("pose", "landmarks", "au", "hog")
"""Groups of columns of a feature file, in the order of the file."""

EXIT_CODES = """\
exit codes:
  0    success; for rows without features, the output has the reason
  2    invalid command line
  3    an input file cannot be used, or the output cannot be written
  4    the server is unreachable, not ready, or failed
  130  interrupted; to resume `run`, run the same command again
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of `triton-face`."""
    top = argparse.ArgumentParser(
        prog="triton-face",
        description="Compute AU features and head pose with a triton-face-features server.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {version(DISTRIBUTION)}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = _common_options()
    add_options: Callable[[argparse.ArgumentParser], None] | None
    for name, add_options, summary in (
        ("info", None, "show the server, its models and their statistics"),
        ("run", _add_run_options, "compute the features of a landmark table and its images or video"),
        ("plot", _add_plot_options, "draw one face in detail, or a contact sheet of several"),
        ("bench", _add_bench_options, "measure latency and throughput under a short load"),
    ):
        command = commands.add_parser(
            name,
            parents=[common],
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if add_options is not None:
            add_options(command)
    return top


def urls(options: argparse.Namespace) -> list[str]:
    """Return the addresses of ``--url``, else of the environment variable, else the default."""
    given: list[str] | None = options.url
    return given or os.environ.get(URL_VARIABLE, DEFAULT_URL).split(",")


def tls(options: argparse.Namespace) -> Tls | None:
    """Return the TLS settings, or None if no TLS option is given."""
    settings = Tls(
        options.root_certificates, options.certificate_chain, options.private_key, options.server_name
    )
    return settings if options.tls or settings != Tls() else None


def cropping(options: argparse.Namespace) -> Cropping:
    """Return the box of the crops and its enlargement."""
    default = DEFAULT_CROPPING.enlarge if options.crop == "landmarks" else 1.0
    return Cropping(options.crop, options.enlarge or default)


def _common_options() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    server = common.add_argument_group("server")
    server.add_argument(
        "--url",
        action="append",
        metavar="HOST:PORT",
        help="gRPC endpoint; repeat the option to spread requests over servers, round robin "
        f"(default: ${URL_VARIABLE} or {DEFAULT_URL})",
    )
    server.add_argument(
        "--wait", type=_positive, metavar="SECONDS", help="wait up to SECONDS until the server is ready"
    )
    server.add_argument(
        "--timeout",
        type=_positive,
        default=60.0,
        metavar="SECONDS",
        help="time limit for each attempt of a request (default: 60)",
    )
    server.add_argument(
        "--retry",
        type=_non_negative,
        default=60.0,
        metavar="SECONDS",
        help="retry a request for up to SECONDS while the server is unreachable or overloaded "
        "(default: 60; 0: never)",
    )
    server.add_argument(
        "--shm", action="store_true", help="send tensors through shared memory to a server on this machine"
    )
    server.add_argument(
        "--header",
        action="append",
        type=_header,
        metavar="NAME=VALUE",
        default=[],
        help="gRPC metadata to send with each request, for example a token",
    )
    server.add_argument("--tls", action="store_true", help="use TLS; the four options below imply it")
    server.add_argument(
        "--root-certificates", type=Path, metavar="PEM", help="authorities that sign the server's certificate"
    )
    server.add_argument("--certificate-chain", type=Path, metavar="PEM", help="client certificate, for mTLS")
    server.add_argument("--private-key", type=Path, metavar="PEM", help="key of the client certificate")
    server.add_argument(
        "--server-name", metavar="NAME", help="name in the server's certificate if it differs from HOST"
    )
    return common


def _add_table_options(command: argparse.ArgumentParser, media_count: str) -> None:
    command.add_argument(
        "media",
        type=Path,
        nargs=media_count,
        metavar="MEDIA",
        help="a video, images, or a folder of images",
    )
    command.add_argument(
        "--landmarks",
        type=Path,
        required=True,
        metavar="TABLE",
        help="landmark table: CSV of OpenFace or py-feat, Parquet, a feature file of `run`, or NPZ with "
        "landmarks [N, 68, 2] and frame [N]",
    )
    command.add_argument(
        "--crop",
        choices=("landmarks", "face-rect"),
        default="landmarks",
        help="box of the crop: the bounding box of the landmarks (default), or the box in py-feat's FaceRect "
        "columns, as in py-feat itself",
    )
    command.add_argument(
        "--enlarge",
        type=_positive,
        metavar="FACTOR",
        help="factor for the box's sides (default: 1.2; 1 for face-rect, which is already enlarged)",
    )


def _add_run_options(command: argparse.ArgumentParser) -> None:
    _add_table_options(command, "+")
    command.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="feature file: .parquet, .csv or .npz"
    )
    command.add_argument(
        "--columns",
        type=_column_groups,
        metavar="GROUP,GROUP,...",
        help=f"groups of columns to compute and write: {', '.join(COLUMN_GROUPS)} "
        "(default: all that the server computes)",
    )
    command.add_argument(
        "--restart", action="store_true", help="replace FILE, or the rows of an interrupted run"
    )


def _add_plot_options(command: argparse.ArgumentParser) -> None:
    _add_table_options(command, "*")
    command.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="picture: .png, .jpg, .webp, .tif, .pdf, .svg"
    )
    command.add_argument(
        "--count",
        type=_count,
        default=24,
        metavar="FACES",
        help="number of faces on the sheet, spread evenly over the table (default: 24)",
    )
    command.add_argument(
        "--rows", type=_rows, metavar="N,N,...", help="rows of the table to draw, from 0; overrides --count"
    )


def _add_bench_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seconds", type=_positive, default=5.0, help="duration of the load (default: 5)")
    command.add_argument(
        "--batch", type=_count, default=8, metavar="FACES", help="faces per request (default: 8)"
    )
    command.add_argument(
        "--concurrency",
        type=_count,
        default=4,
        metavar="REQUESTS",
        help="closed loop: requests in flight (default: 4)",
    )
    command.add_argument(
        "--rate", type=_positive, metavar="FACES", help="open loop: faces per second, at random times"
    )
    command.add_argument(
        "--outputs",
        type=lambda text: text.split(","),
        default=["HOG", "POSE"],
        metavar="NAME,NAME,...",
        help="outputs to request, for example AU (default: HOG,POSE)",
    )


def _non_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number of at least 0")
    return value


def _positive(text: str) -> float:
    value = _non_negative(text)
    if not value:
        raise argparse.ArgumentTypeError(f"{text} is not greater than 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _rows(text: str) -> list[int]:
    return [int(row) for row in text.split(",")]


def _column_groups(text: str) -> list[str]:
    groups = text.split(",")
    for group in groups:
        if group not in COLUMN_GROUPS:
            raise argparse.ArgumentTypeError(
                f"{group!r} is not a group of columns: choose from {','.join(COLUMN_GROUPS)}"
            )
    return groups


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value
