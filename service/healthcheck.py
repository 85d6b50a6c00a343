"""`python -m service.healthcheck [URL]`: exit status 0 when URL answers 200, else 1 and why.

For containers, whose image has no curl. Standard library only: it runs every few seconds.
"""

import argparse
import http.client
import os
import sys
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

_TIMEOUT_S: Final = 4.0
"""Less than a container engine waits for this process, so that the reason gets written."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask once; the exit status is the answer."""
    # Not service.settings: pydantic would take most of the time this has.
    port = os.environ.get("AGENT_API_PORT") or "8000"
    parser = argparse.ArgumentParser(prog="python -m service.healthcheck", description=__doc__)
    parser.add_argument("url", nargs="?", default=f"http://127.0.0.1:{port}/health", metavar="URL")
    url: str = parser.parse_args(arguments).url
    try:
        status = _status(url)
    except (OSError, ValueError, http.client.HTTPException) as error:
        sys.stderr.write(f"{url}: {str(error) or type(error).__name__}\n")
        return 1
    if status != http.HTTPStatus.OK:
        sys.stderr.write(f"{url} answers {status}\n")
        return 1
    return 0


def _status(url: str) -> int:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError("give an address like http://127.0.0.1:8000/health")
    # http.client instead of urllib.request: no proxy of the environment stands in between
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", parts.path or "/")
        return connection.getresponse().status
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
