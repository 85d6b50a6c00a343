"""`python -m service.llm serve`: run the offline LLM endpoint."""

import argparse
import sys
from collections.abc import Sequence

from service.errors import ConfigurationError
from service.settings import get_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run; the exit status is 1 when a setting cannot work."""
    try:
        return _run(arguments)
    except ConfigurationError as error:
        # one sentence is worth more than a traceback
        sys.stderr.write(f"{error}\n")
        return 1


def _run(arguments: Sequence[str] | None) -> int:
    settings = get_settings()
    parser = argparse.ArgumentParser(prog="python -m service.llm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser("serve", help="answer /v1/chat/completions until stopped")
    serving.add_argument("--host", default=settings.offline_llm_host, help="address to listen on")
    serving.add_argument(
        "--port",
        type=int,
        default=settings.offline_llm_port,
        help="port to listen on; 0 takes a free one and logs which",
    )
    options = parser.parse_args(arguments)

    from service.llm.endpoint import serve  # noqa: PLC0415 -- --help need not wait a second for it

    serve(settings, options.host, options.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
