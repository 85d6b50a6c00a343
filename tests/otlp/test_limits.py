"""Sizes, before and after decompression."""

import gzip
import tracemalloc
import zlib

import pytest

from spanloom.errors import MalformedPayloadError, PayloadTooLargeError, UnsupportedEncodingError
from spanloom.otlp import decompress


@pytest.mark.parametrize("encoding", ["", "identity", "IDENTITY "])
def test_no_compression(encoding: str) -> None:
    """A plain body passes as it is."""
    assert decompress(b"body", encoding) == b"body"


@pytest.mark.parametrize("size", [0, 1, 6_000_000])
def test_gzip(size: int) -> None:
    """A gzip body comes out whole, of any size."""
    data = bytes(n % 251 for n in range(size))

    assert decompress(gzip.compress(data), "gzip") == data


def test_gzip_of_several_members() -> None:
    """Concatenated gzip members are one body (RFC 1952)."""
    assert decompress(gzip.compress(b"one ") + gzip.compress(b"two"), "gzip") == b"one two"


def test_gzip_of_very_many_members_is_refused() -> None:
    """Their number is bounded, as each costs a copy of the rest: 64 MiB would take hours."""
    with pytest.raises(MalformedPayloadError, match="compress it as one"):
        decompress(gzip.compress(b"") * 10_000, "gzip")


def test_the_limit_holds_for_both_sizes() -> None:
    """Exactly the limit is taken, one byte more is not, compressed or plain."""
    assert decompress(bytes(100), "", limit=100) == bytes(100)
    assert decompress(gzip.compress(bytes(100)), "gzip", limit=100) == bytes(100)
    with pytest.raises(PayloadTooLargeError, match="over 100 bytes"):
        decompress(bytes(101), "", limit=100)
    with pytest.raises(PayloadTooLargeError, match="over 100 bytes"):
        decompress(gzip.compress(bytes(101)), "gzip", limit=100)


def test_a_bomb_never_unfolds() -> None:
    """A body of 256 MiB of zeros is refused after the limit, without being held in memory."""
    bomb = zlib.compressobj(1, wbits=31)
    body = b"".join([bomb.compress(bytes(2**20)) for _ in range(256)] + [bomb.flush()])
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLargeError):
            decompress(body, "gzip", limit=8 * 2**20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 32 * 2**20


@pytest.mark.parametrize(
    "body", [b"plain", gzip.compress(b"x" * 999)[:-9], b"\x1f\x8b"], ids=["plain", "cut", "head"]
)
def test_broken_gzip_is_malformed(body: bytes) -> None:
    """What is not gzip, or ends too early, is the client's mistake."""
    with pytest.raises(MalformedPayloadError):
        decompress(body, "gzip")


def test_other_encodings_are_unsupported() -> None:
    """OTLP asks for gzip only; the message says so."""
    with pytest.raises(UnsupportedEncodingError, match="send gzip"):
        decompress(b"", "zstd")
