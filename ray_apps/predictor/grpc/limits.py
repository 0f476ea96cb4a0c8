"""Limits on what callers may take of a gRPC server, with or without a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one gRPC server; the defaults fit one process on one node.

    max_message_bytes: of a request, unpacked; the HTTP endpoints' bound, so that both protocols accept the same.
    max_calls: calls at once on all connections; the endpoints refuse more than that in flight anyway.
    max_streams: calls at once on one connection; one caller must not hold all of `max_calls`.
    max_reads, max_reads_of_caller: messages that are being received at once, for all and for one token; further calls
    wait, at most `message_s`. max_open_streams, max_open_streams_of_caller: streams of messages, which are refused beyond.
    max_held_bytes: of large messages that wait for their answer; beyond it calls are refused.
    unread_bytes: of a message that are taken before it is read.
    max_connections: of all callers; each costs a file descriptor and some 100 KB, with or without a token.
    max_metadata_bytes: of a call's metadata; a large OIDC token and trace headers fit into it.
    handshake_s: from the connection to the client's first settings.
    message_s: from a call's headers to its whole message, as long as an endpoint waits for slow bodies.
    idle_s: without a call, after which a connection is closed, and without a message, after which a stream is.
    age_s: of a connection, so that callers spread over servers that started after they connected.
    age_grace_s: for the calls of a connection that is too old, which may be long streams.
    keepalive_s, keepalive_timeout_s: how often a silent caller is pinged, and how long its answer is waited for, so
    that callers which vanished are noticed.
    min_ping_interval_s: between a client's own pings; a client that pings more often is disconnected.
    """

    max_message_bytes: int = 64 << 20
    max_calls: int = 1_280
    max_streams: int = 1_024
    max_reads: int = 32
    max_reads_of_caller: int = 16
    max_open_streams: int = 256
    max_open_streams_of_caller: int = 64
    max_held_bytes: int = 256 << 20
    unread_bytes: int = 16 << 10
    max_connections: int = 4_096
    max_metadata_bytes: int = 16 << 10
    handshake_s: float = 10.0
    message_s: float = 60.0
    idle_s: float = 600.0
    age_s: float = 3_600.0
    age_grace_s: float = 300.0
    keepalive_s: float = 60.0
    keepalive_timeout_s: float = 20.0
    min_ping_interval_s: float = 10.0

    def channel_arguments(self) -> list[tuple[str, Any]]:
        """The limits as options of gRPC core; the service enforces those without an option."""
        return [
            ("grpc.max_receive_message_length", self.max_message_bytes),  # after unpacking, too
            ("grpc.max_concurrent_streams", self.max_streams),
            ("grpc.max_allowed_incoming_connections", self.max_connections),
            # else core raises how much of an unread message it takes to megabytes a call
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", self.unread_bytes),
            ("grpc.max_metadata_size", self.max_metadata_bytes),
            ("grpc.absolute_max_metadata_size", self.max_metadata_bytes),  # else some in between are taken
            ("grpc.server_handshake_timeout_ms", _ms(self.handshake_s)),
            ("grpc.max_connection_idle_ms", _ms(self.idle_s)),
            ("grpc.max_connection_age_ms", _ms(self.age_s)),
            ("grpc.max_connection_age_grace_ms", _ms(self.age_grace_s)),
            ("grpc.keepalive_time_ms", _ms(self.keepalive_s)),
            ("grpc.keepalive_timeout_ms", _ms(self.keepalive_timeout_s)),
            # a minute by default, which would override the keepalive timeout
            ("grpc.http2.ping_timeout_ms", _ms(self.keepalive_timeout_s)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", _ms(self.min_ping_interval_s)),
            ("grpc.so_reuseport", 1),  # the next server listens before the last one ends
        ]


def _ms(seconds: float) -> int:
    return int(seconds * 1e3)
