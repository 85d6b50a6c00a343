"""Questions about now, and the time zones they name."""

import re
import zoneinfo
from functools import lru_cache
from importlib.resources import files
from typing import Final

from service.llm.language import normalise

_ASKS_NOW: Final = re.compile(
    r"\bwhat(?:'s| is| was)? (?:the )?(?:current |local |exact )?"
    r"(?:time|date|day|weekday|year|month|hour)\b"
    r"(?! (?:complexity|limit|out|zone|series|range|budget|taken|needed|required|to|between))"
    r"|\b(?:current|local|present) (?:utc |local )?(?:time|date|day|year|hour|timestamp)\b"
    r"|\b(?:time|date|day|hour|year) (?:is it|right now|now|today)\b|\btoday'?s date\b"
    r"|\b(?:tell|give|show) me the (?:time|date)\b|\bwhat day is (?:it|today)\b"
    r"|几点|现在(?:是)?(?:什么)?时间|当前(?:的)?(?:时间|日期|时刻)|现在(?:的)?(?:时间|日期)"
    r"|今天(?:是)?(?:几号|几月|星期|周几|礼拜|多少号|什么日子|日期|的日期)|今天是哪|哪一年|今年是",
    re.IGNORECASE,
)
_ZONE_NAME: Final = re.compile(r"\b[A-Z][A-Za-z]+(?:/[A-Z][A-Za-z_+\-0-9]+){1,2}\b")
_UTC: Final = re.compile(r"\b(?:UTC|GMT)\b|世界时|格林尼治", re.IGNORECASE)


def asks_for_now(question: str) -> bool:
    """Does the question want the present time or date?"""
    return _ASKS_NOW.search(normalise(question)) is not None


def time_zones(question: str) -> list[str]:
    """IANA names of the zones and cities the question names, in order of mention."""
    text = normalise(question)
    places, pattern = _places()
    found = [
        (match.start(), match.group())
        for match in _ZONE_NAME.finditer(text)
        if match.group() in zoneinfo.available_timezones()
    ]
    taken = [range(start, start + len(name)) for start, name in found]
    found += [
        (match.start(), places[match.group().lower()])
        for match in pattern.finditer(text)
        if not any(match.start() in span for span in taken)
    ]
    if utc := _UTC.search(text):
        found.append((utc.start(), "UTC"))
    return list(dict.fromkeys(name for _position, name in sorted(found)))


@lru_cache(maxsize=1)
def _places() -> tuple[dict[str, str], re.Pattern[str]]:
    """Zone by lowercased place name: the cities of the zone database, and a short list besides.

    The database names one city a zone, in English; `time_zone_cities.txt` adds Chinese names
    and large cities that share another city's zone.
    """
    places: dict[str, str] = {}
    for zone in sorted(zoneinfo.available_timezones()):
        area, _, city = zone.rpartition("/")
        if area.split("/")[0] in _AREAS:
            places.setdefault(city.replace("_", " ").lower(), zone)
    listed = files(__package__).joinpath("time_zone_cities.txt").read_text(encoding="utf-8")
    for line in listed.splitlines():
        zone, _, names = line.partition(":")
        places.update({name.strip().lower(): zone.strip() for name in names.split(",") if names})
    longest_first = sorted(places, key=len, reverse=True)
    alternatives = "|".join(
        rf"\b{re.escape(name)}\b" if name.isascii() else re.escape(name) for name in longest_first
    )
    return places, re.compile(alternatives, re.IGNORECASE)


_AREAS: Final = frozenset(
    {
        "Africa",
        "America",
        "Antarctica",
        "Asia",
        "Atlantic",
        "Australia",
        "Europe",
        "Indian",
        "Pacific",
    }
)
