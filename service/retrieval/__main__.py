"""`python -m service.retrieval serve` and `python -m service.retrieval index PATH`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from service import VERSION
from service.errors import ConfigurationError
from service.listening import KEEP_ALIVE_S, listen
from service.retrieval import index_file
from service.retrieval.app import create_app
from service.retrieval.live import CorpusError, LiveIndex, build
from service.settings import Settings, get_settings
from spanloom.telemetry import get_logger, setup


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit status."""
    try:
        return _run(arguments)
    except ConfigurationError as error:
        # one sentence is worth more than a traceback
        sys.stderr.write(f"{error}\n")
        return 1


def _run(arguments: Sequence[str] | None) -> int:
    settings = get_settings()
    parser = argparse.ArgumentParser(prog="python -m service.retrieval", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="answer searches over HTTP")
    serve.add_argument("--host", default=settings.retrieval_host)
    serve.add_argument(
        "--port", type=int, default=settings.retrieval_port, help="0 takes a free one"
    )
    index = commands.add_parser("index", help="make PATH's .md and .txt files what is searched")
    index.add_argument(
        "path", type=Path, metavar="PATH", help="a folder (searched whole) or a file"
    )
    index.add_argument("--out", type=Path, default=settings.index_path, help="folder of the index")
    chosen = parser.parse_args(arguments)
    if chosen.command == "index":
        return _index(chosen.path, chosen.out)
    return _serve(settings, chosen.host, chosen.port)


def _index(path: Path, out: Path) -> int:
    try:
        index, loaded = build(path, explicit=True)
        file = index_file.save(index, out)
    except (CorpusError, OSError) as error:
        print(f"Nothing was indexed: {error}", file=sys.stderr)  # noqa: T201  # a command's answer
        return 1
    lines = [f"skipped {skipped.source}: it {skipped.reason}" for skipped in loaded.skipped]
    lines += [
        f"renamed {source}: its id was taken, it is {name}"
        for source, name in loaded.renamed.items()
    ]
    lines.append(
        f"Indexed {len(index.documents)} documents in {len(index.passages)} passages, "
        f"skipped {len(loaded.skipped)} files; wrote {file}"
    )
    print("\n".join(lines))  # noqa: T201  # a command's answer
    return 0


def _serve(settings: Settings, host: str, port: int) -> int:
    # before the index is read, so that a taken port is said at once
    listener = listen(host, port, variable="AGENT_RETRIEVAL_PORT")
    telemetry = setup("retrieval", service_version=VERSION)
    log = get_logger(__name__)
    try:
        live = LiveIndex(settings)
    except (CorpusError, OSError) as error:
        log.error("retrieval_not_started", reason=str(error))  # noqa: TRY400  # the sentence is enough
        telemetry.shutdown()
        return 1
    address, bound_port = listener.getsockname()[:2]
    log.info("retrieval_listening", host=address, port=bound_port)
    config = uvicorn.Config(
        create_app(live, telemetry),
        log_config=None,  # telemetry has already given uvicorn's loggers their JSON lines
        timeout_graceful_shutdown=5,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    uvicorn.Server(config).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
