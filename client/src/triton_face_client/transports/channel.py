"""The gRPC channel: addresses, TLS and channel options."""

import dataclasses
import re
import socket
from collections.abc import Sequence
from pathlib import Path

import grpc
from tritonclient.grpc import MAX_GRPC_MESSAGE_SIZE, KeepAliveOptions

ADDRESS = re.compile(r"(?P<host>[^/\[\]:\s]+|\[[0-9a-fA-F:.]+\]):(?P<port>\d{1,5})")
TARGET = re.compile(r"(dns|ipv4|ipv6|unix|xds):.+")

RECONNECT_MS = 2000
"""Maximum wait between attempts to connect to an unreachable server. gRPC's default is two minutes."""

RESOLVE_MS = 5000
"""Minimum time between two DNS look-ups of a name. With gRPC's default, 30 s, new pods are found late."""


@dataclasses.dataclass(frozen=True)
class Tls:
    """TLS encryption; with a client certificate, mutual TLS (mTLS).

    Parameters
    ----------
    root_certificates : path, optional
        PEM file of the certificate authorities that may sign the server's certificate; by default gRPC's
        built-in ones.
    certificate_chain, private_key : path, optional
        PEM files of the client's certificate and key; both or neither.
    server_name : str, optional
        Name in the server's certificate, if it differs from the host in the address.
    """

    root_certificates: str | Path | None = None
    certificate_chain: str | Path | None = None
    private_key: str | Path | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files. Raise a ValueError if a file is unreadable, or chain or key is given alone."""
        if (self.certificate_chain is None) != (self.private_key is None):
            raise ValueError("certificate_chain and private_key belong together: give both or neither")
        return grpc.ssl_channel_credentials(
            root_certificates=_read(self.root_certificates),
            private_key=_read(self.private_key),
            certificate_chain=_read(self.certificate_chain),
        )


def target(url: str | Sequence[str]) -> str:
    """Return the gRPC target of one address or several.

    Parameters
    ----------
    url : str or sequence of str
        One or more ``HOST:PORT``, or a single target in gRPC's syntax, such as ``dns:///faces.lab:8001``.
        gRPC resolves a single host name again whenever a connection is lost. This function resolves the host
        names of several addresses once.

    Raises
    ------
    ValueError
        If an address is malformed, or a host among several cannot be resolved to an IPv4 address.
    """
    addresses = [url] if isinstance(url, str) else list(url)
    if not addresses:
        raise ValueError("no address given: url is HOST:PORT, or a sequence of HOST:PORT")
    for address in addresses:
        if not (ADDRESS.fullmatch(address) or (len(addresses) == 1 and TARGET.fullmatch(address))):
            raise ValueError(
                f"{address!r} is not HOST:PORT: give the gRPC endpoint, for example 127.0.0.1:8001"
            )
    if len(addresses) == 1:
        return addresses[0]
    return "ipv4:" + ",".join(_resolved(address) for address in addresses)


def channel_options(
    url: str | Sequence[str], tls: Tls | None, keepalive: KeepAliveOptions
) -> list[tuple[str, str | int]]:
    """Return tritonclient's channel options, with round robin over the addresses and quick reconnection."""
    options: list[tuple[str, str | int]] = [
        ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_SIZE),
        ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_SIZE),
        ("grpc.keepalive_time_ms", keepalive.keepalive_time_ms),
        ("grpc.keepalive_timeout_ms", keepalive.keepalive_timeout_ms),
        ("grpc.keepalive_permit_without_calls", keepalive.keepalive_permit_without_calls),
        ("grpc.http2.max_pings_without_data", keepalive.http2_max_pings_without_data),
        ("grpc.lb_policy_name", "round_robin"),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MS),
        ("grpc.dns_min_time_between_resolutions_ms", RESOLVE_MS),
        # Without this option the clients of a process share connections. A new client would then inherit the
        # reconnection backoff that an earlier client's failures have caused.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if tls is None:
        return options
    name = tls.server_name
    if name is None and not isinstance(url, str) and len(url) > 1:
        # The target contains IP addresses, but the certificate has a host name: that of the first address.
        name = _host(url[0])
    return options + ([("grpc.ssl_target_name_override", name)] if name else [])


def _resolved(address: str) -> str:
    host, port = _host(address), address.rpartition(":")[2]
    try:
        resolved = socket.getaddrinfo(host, int(port), socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise ValueError(f"the host of {address!r} cannot be resolved to an IPv4 address: {error}") from error
    return f"{resolved[0][4][0]}:{port}"


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _read(path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
