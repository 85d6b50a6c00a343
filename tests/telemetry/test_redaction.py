import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanloom.telemetry.redaction import cap, pseudonym, redact

SECRETS = [
    "sk-proj-abcdefghijklmnop",
    "sk-ant-api03-abcdefghijkl",
    "ghp_abcdefghijklmnopqrstuvwxyz",
    "xoxb-1234567890-abcdef",
    "AKIAIOSFODNN7EXAMPLE",
    "hf_abcdefghijklmnop",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
]
NAMES = [
    *("api_key", "access-key", "secret_key", "private_keys", "signing-key", "client_secret"),
    *("secret", "password", "passwd", "passphrase", "pwd", "authorization", "cookie", "token"),
    *("access_token", "csrf-token", "x-amz-signature", "x-amz-security-token", "credentials"),
    *("pa\u017fsword", "api_\u212aey", "cook\u0131e"),  # other letters that fold to s, k and i
]


@pytest.mark.parametrize("secret", SECRETS)
def test_keys_are_known_by_their_prefix(secret: str) -> None:
    """A key is taken out wherever it stands, between Chinese words too."""
    text = redact(f"密钥 {secret} 无效", 1000)

    assert text == "密钥 [REDACTED] 无效"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Bearer abc.def-ghi", "abc.def-ghi"),
        ("postgresql://user:p@ssword@db:5432/x", "p@ssword"),
        ("https://u:hunter22@example.com/path", "hunter22"),
        ("OPENAI_API_KEY=plainlookingvalue", "plainlookingvalue"),
        ('{"password": "with spaces inside"}', "with spaces"),
        ("client_secret='abcd1234'", "abcd1234"),
        *((f"{name}=abcd1234", "abcd1234") for name in NAMES),
        *((f"{name.upper()}: abcd1234", "abcd1234") for name in NAMES),
        ("GET /x?token=deadbeef01&a=1", "deadbeef01"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIB\nAAAA\n-----END RSA PRIVATE KEY-----", "MIIB"),
        ("-----BEGIN PRIVATE KEY-----\nMIIB cut off", "MIIB"),
    ],
)
def test_secrets_are_known_by_their_place(text: str, secret: str) -> None:
    """Headers, URLs, assignments and key blocks lose their secret."""
    assert secret not in redact(text, 1000)


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens: 512 exceeds the limit of 400",
        "Unexpected token: '}' at line 3",
        "http://127.0.0.1:8001/search?top_k=3",
        "connection to 10.0.0.1:5432 failed",
        "知识库没有回答",
    ],
)
def test_ordinary_messages_stay_as_they_are(text: str) -> None:
    """What is no secret is not touched."""
    assert redact(text, 1000) == text


def test_long_texts_keep_both_ends() -> None:
    """A stack trace names its cause last, so the end stays too."""
    text = redact("begin" + "x" * 50_000 + "the cause", 4096)

    assert len(text) <= 4096
    assert text.startswith("begin")
    assert text.endswith("the cause")
    assert "characters left out" in text


def test_a_secret_at_the_cut_does_not_leak() -> None:
    """Secrets are taken out before the text is cut."""
    for length in range(60, 120):
        assert "klmnop" not in redact("a" * length + " sk-abcdefghijklmnop " + "b" * 200, 128)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text",
    [
        "a" * 300_000,
        "api_key=" * 40_000,
        "://" * 90_000,
        "eyJ" * 90_000,
        "eyJ-" * 70_000,
        "eyJ-" * 60_000 + ".eyJ-",
        "bearer " * 40_000,
    ],
)
def test_hostile_text_ends(text: str) -> None:
    """No pattern goes quadratic on text made for that, which would take minutes."""
    assert len(redact(text, 4096)) <= 4096


@pytest.mark.parametrize("before", ["", "=", "session-", "/", "a.b-"])
def test_a_web_token_is_found_wherever_it_stands(before: str) -> None:
    """Also in a name that its characters belong to."""
    token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"

    assert "IUzI1" not in redact(f"{before}{token} 之后", 1000)
    assert "c2lnbmF0" not in redact(f"{before}{token} 之后", 1000)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=300), st.integers(min_value=0, max_value=200))
def test_the_limit_holds(text: str, limit: int) -> None:
    """The result is never longer than asked for."""
    assert len(cap(text, limit)) <= limit


def test_a_pseudonym_is_stable_and_unreadable() -> None:
    """The same user gives the same 16 digits, another user others."""
    assert pseudonym("王芳") == pseudonym("王芳") != pseudonym("alice")
    assert len(pseudonym("王芳")) == 16
