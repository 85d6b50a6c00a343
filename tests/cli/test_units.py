import pytest

from spanloom.cli.units import local_time, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [("10GB", 10**10), ("512MiB", 2**29), ("1.5kB", 1500), (" 3 tb ", 3 * 10**12), ("7B", 7)],
)
def test_sizes_have_units(text: str, size: int) -> None:
    """Decimal and binary units, in any case."""
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["10", "GB", "-1GB", "1 XB", "", "1e3GB", "1GB 2MB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """A number without a unit could mean anything."""
    with pytest.raises(ValueError, match="is not a size: write 500MB"):
        parse_bytes(text)


def test_times_outside_of_the_calendar_have_a_name() -> None:
    """A producer may send any 64-bit number."""
    assert local_time(2**64 - 1).startswith("2554")
    assert local_time(2**90) == "unknown time"
    assert local_time(1_790_000_000_123_000_000, date=False).endswith(".123")
