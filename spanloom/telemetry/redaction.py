"""Secrets and length: what an exception text goes through before it leaves the process.

A pattern errs on the side of leaving a harmless word out; every pattern is linear in the length
of the text, because the text comes from whoever caused the exception.
"""

import hashlib
import re
from typing import Final

MESSAGE_LIMIT: Final = 4_096
"""Longest exception message or status description, in characters."""
STACK_LIMIT: Final = 16_384
"""Longest stack trace, in characters."""

REDACTED: Final = "[REDACTED]"

SCANNED: Final = 262_144
"""Longest text looked at: what lies behind is dropped unread, so that no pattern runs for long."""

_SENSITIVE_NAMES: Final = (
    r"api[_-]?keys?|access[_-]?keys?|secret[_-]?keys?|private[_-]?keys?|signing[_-]?keys?"
    r"|client[_-]?secret|secret|password|passwd|passphrase|pwd|authorization|cookie"
    r"|(?:access|auth|bearer|refresh|session|id|api|csrf)[_-]?token|\btoken"
    r"|x-amz-(?:signature|security-token)|credentials?"
)

_NAME_STEMS: Final = ("key", "secret", "pass", "pwd", "auth", "cook", "token", "cred", "x-amz-")
"""One of these is in every name above. Where none is in a text, the pattern with the names, which
takes ten times as long as all others, is spared. No "i": that of Turkish folds to another letter.
"""

_PATTERNS: Final = (
    # A whole private key, or its beginning where the text was cut.
    (
        re.compile(
            r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}-----|\Z)",
            re.DOTALL,
        ),
        REDACTED,
    ),
    # scheme://user:password@host, also with an "@" inside the password.
    (re.compile(r"(?<=://)[^\s/?#@:]{0,256}:[^\s/]{0,512}@"), f"{REDACTED}@"),
    (re.compile(r"\b(bearer|basic|negotiate)\s+[\w.~+/=-]{6,}", re.IGNORECASE), rf"\1 {REDACTED}"),
    # JSON web tokens. A run of their characters is looked at once, as far as its first dot: from
    # each "eyJ" in it on, a run without a dot would be read again to its end.
    (
        re.compile(r"(?<![\w-])(?=[\w-]++\.[\w-]{4})[\w-]*?\beyJ[\w-]{8,}\.[\w-]{4,}(?:\.[\w-]*)?"),
        REDACTED,
    ),
    # Keys known by their prefix: OpenAI, Anthropic, Stripe, GitHub, GitLab, Slack, AWS, Google,
    # Hugging Face, Groq.
    (
        re.compile(
            r"\b(?:(?:sk|pk|rk|gsk|hf|xai)[-_][\w-]{8,}|gh[opsur]_\w{16,}|github_pat_\w{16,}"
            r"|glpat-[\w-]{16,}|xox[abeprs]-[\w-]{8,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|AIza[\w-]{20,})"
        ),
        REDACTED,
    ),
)


# name=value, name: value, "name": "value"
_NAMED: Final = re.compile(
    rf"((?:{_SENSITIVE_NAMES})[\"']?\s{{0,8}}[:=]\s{{0,8}})(?:\"[^\"]{{4,}}\"|'[^']{{4,}}'|[^\s\"'&,;)}}\]]{{4,}})",
    re.IGNORECASE,
)
_SECRET_NAME: Final = re.compile(rf"(?:{_SENSITIVE_NAMES})\Z", re.IGNORECASE)


def is_secret_name(name: str) -> bool:
    """Whether a field of this name holds a secret, as `api_key` and `db_password` do."""
    return _SECRET_NAME.search(name) is not None


def redact(text: str, limit: int) -> str:
    """Replace secrets by `[REDACTED]`, then cut to at most `limit` characters.

    A text that is too long keeps its beginning and its end, because a stack trace names its cause
    last, and says between them how much is missing.
    """
    scanned = text[:SCANNED]
    for pattern, replacement in _PATTERNS:
        scanned = pattern.sub(replacement, scanned)
    folded = scanned.casefold()
    if any(stem in folded for stem in _NAME_STEMS):
        scanned = _NAMED.sub(rf"\g<1>{REDACTED}", scanned)
    return cap(scanned, limit)


def cap(text: str, limit: int) -> str:
    """Cut to at most `limit` characters, keeping the beginning and the end."""
    if len(text) <= limit:
        return text
    mark = f" …[{len(text) - limit} characters left out]… "
    room = limit - len(mark)
    if room <= 0:
        return text[:limit]
    tail = room * 2 // 3
    return text[: room - tail] + mark + text[len(text) - tail :]


def pseudonym(identity: str) -> str:
    """Return a stable stand-in for a user id: 16 hex digits of its BLAKE2 hash.

    The same user is recognised again across traces, and the name is not readable. It is no
    protection against someone who can guess the id and hash it too.
    """
    return hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
