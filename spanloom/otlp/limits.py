"""Body size limits, before and after decompression."""

import zlib
from typing import Final

from spanloom.errors import MalformedPayloadError, PayloadTooLargeError, UnsupportedEncodingError

MAX_BODY_BYTES: Final = 64 * 1024 * 1024
"""What opentelemetry-proto recommends a server to take, measured after decompression."""

_STEP_BYTES: Final = 1024 * 1024
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS
_MAX_MEMBERS: Final = 64
"""Parts of one gzip body; clients send one. zlib copies the rest of the body for each of them, so
that three million empty ones, which fit into 64 MiB, would keep a thread busy for hours."""


def decompress(body: bytes, content_encoding: str, limit: int = MAX_BODY_BYTES) -> bytes:
    """Undo a Content-Encoding without ever holding more than `limit` bytes of result.

    Args:
        body: the request body as received.
        content_encoding: the header's value; "" and `identity` return the body itself.
        limit: most bytes the result may have.

    Raises:
        PayloadTooLargeError: the body, compressed or not, is over the limit.
        MalformedPayloadError: the body is not gzip, or is cut off.
        UnsupportedEncodingError: the encoding is neither gzip nor identity.
    """
    if len(body) > limit:
        raise _too_large(limit)
    match content_encoding.strip().lower():
        case "" | "identity":
            return body
        case "gzip" | "x-gzip":
            return _gunzip(body, limit)
        case other:
            raise UnsupportedEncodingError(
                f"Content-Encoding {other!r} is not supported; send gzip or no compression."
            )


def _gunzip(body: bytes, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    rest = body
    try:
        # A gzip file may have several members, one after the other.
        members = 0
        while rest:
            members += 1
            if members > _MAX_MEMBERS:
                raise MalformedPayloadError(
                    f"The gzip body has more than {_MAX_MEMBERS} members; compress it as one."
                )
            member = zlib.decompressobj(_GZIP_WINDOW)
            while not member.eof:
                # One byte over the limit is enough to know, so a bomb never unfolds further.
                chunk = member.decompress(rest, min(_STEP_BYTES, limit - size + 1))
                rest = member.unconsumed_tail
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                chunks.append(chunk)
                if not chunk and not rest and not member.eof:
                    raise MalformedPayloadError(
                        "The gzip body ends too early; send it again in one piece."
                    )
            rest = member.unused_data
    except zlib.error as error:
        raise MalformedPayloadError(
            f"The body is not valid gzip ({error}); "
            "compress it, or leave Content-Encoding out of the request."
        ) from error
    return b"".join(chunks)


def _too_large(limit: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"The body is over {limit} bytes after decompression; "
        "send smaller batches (OTEL_BSP_MAX_EXPORT_BATCH_SIZE for spans)."
    )
