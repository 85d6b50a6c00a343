"""`python -m service.llm serve`: run the offline LLM endpoint."""

import argparse
import errno
import sys
from collections.abc import Sequence

from service.settings import get_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run; the exit status is 1 when the address cannot be had."""
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

    try:
        serve(settings, options.host, options.port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            told = (
                f"Port {options.port} on {options.host} is taken. Stop what listens there, or "
                "choose another port with --port or AGENT_OFFLINE_LLM_PORT."
            )
        else:
            told = f"Cannot listen on {options.host} port {options.port}: {error}."
        sys.stderr.write(f"{told}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
