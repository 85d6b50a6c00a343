"""Start the chat page."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from service import VERSION
from service.errors import ConfigurationError
from service.settings import get_settings
from spanloom.telemetry import setup

_PAGE: Final = Path(__file__).parents[1] / "chat_ui.py"


def main() -> int:
    """Serve the page until it is told to stop."""
    if find_spec("streamlit") is None:
        sys.stderr.write("The chat page needs an extra: pip install 'spanloom[ui]'\n")
        return 1
    try:
        settings = get_settings()
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    from streamlit.web import cli  # noqa: PLC0415  # needs the extra just checked

    # The page's side of every question is a span, too: the trace begins where the user waits.
    telemetry = setup("chat-page", service_version=VERSION)
    try:
        cli.main(
            [
                *("run", str(_PAGE)),
                f"--server.address={settings.chat_host}",
                f"--server.port={settings.chat_port}",
                "--server.headless=true",  # opens no browser, asks for no e-mail address
                "--server.fileWatcherType=none",
                "--client.toolbarMode=minimal",
                "--browser.gatherUsageStats=false",
            ],
            standalone_mode=False,
        )
    finally:
        telemetry.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
