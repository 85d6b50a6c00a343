"""The exception tree.

* SpanloomError
  - ConfigurationError         a setting is missing or wrong; the message names it
  - MissingExtraError          an optional dependency is absent; the message names the extra
  x PayloadError               what a client sent cannot be taken, whoever retries
    - MalformedPayloadError    not OTLP, or not in the declared encoding     (HTTP 400)
    - PayloadTooLargeError     over the limit, also after decompression      (HTTP 413)
    - UnsupportedEncodingError unknown Content-Type or Content-Encoding      (HTTP 415)
  - QueryError                 a query parameter is wrong                    (HTTP 400)
  - NotFoundError              what was asked for is not there               (HTTP 404)
  x StoreError
    - StoreFullError           queue or disk full, try again later           (HTTP 429 / 503)
    - StoreClosedError         used after close                              (HTTP 503)
    - StoreLockedError         another process holds the store
    - StoreVersionError        written by a newer version
    - StoreCorruptError        the file is damaged
    - StoreRejectedError       a batch that can never be stored, say with a bad id
    - StoreUnavailableError    the disk or file system refuses, try again      (HTTP 503)
  x SourceError                a remote backend, seen from `sources`
    - SourceUnavailableError   nothing answers, or not in time
    - SourceResponseError      it answers, but not what was expected

`x` marks a base that is caught but never raised itself.
"""


class SpanloomError(Exception):
    """Base of everything Spanloom raises on purpose."""


class ConfigurationError(SpanloomError):
    """A setting is missing or wrong."""


class MissingExtraError(SpanloomError):
    """An optional dependency is not installed."""

    def __init__(self, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs an extra: pip install 'spanloom[{extra}]'")
        self.extra = extra


class PayloadError(SpanloomError):
    """Base: what a client sent cannot be taken."""


class MalformedPayloadError(PayloadError):
    """The body is not a valid OTLP request in its declared encoding."""


class PayloadTooLargeError(PayloadError):
    """The body is over the size limit, before or after decompression."""


class UnsupportedEncodingError(PayloadError):
    """The Content-Type or Content-Encoding is not one OTLP defines."""


class QueryError(SpanloomError):
    """A query parameter is wrong."""


class NotFoundError(SpanloomError):
    """What was asked for by name is not there."""


class StoreError(SpanloomError):
    """Base: the store cannot do what was asked."""


class StoreFullError(StoreError):
    """The write queue or the disk is full; nothing was taken, try again later."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreClosedError(StoreError):
    """The store was used after it was closed."""


class StoreLockedError(StoreError):
    """Another process holds the store."""


class StoreVersionError(StoreError):
    """The store was written by a newer version of Spanloom."""


class StoreCorruptError(StoreError):
    """The store's file is damaged."""


class StoreRejectedError(StoreError):
    """The batch itself cannot be stored; sending it again will not help."""


class StoreUnavailableError(StoreError):
    """The disk or the file system refuses; trying again may help."""


class SourceError(SpanloomError):
    """Base: a remote backend cannot answer."""


class SourceUnavailableError(SourceError):
    """Nothing answers at the address, or not in time."""


class SourceResponseError(SourceError):
    """The backend answered, but not with what its API promises."""
