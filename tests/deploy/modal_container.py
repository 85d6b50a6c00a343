"""What a container of deploy/modal does, on loopback: enter, serve the ASGI application, exit.

    python modal_container.py FOLDER_OF_MODAL PORT

Modal runs the class by its own means, `.local()` among them; uvicorn stands for its web server.
"""

import importlib.util
import signal
import sys
from pathlib import Path

import uvicorn

APP = Path(__file__).parents[2] / "deploy/modal/app.py"


def main(modal_folder: str, port: int) -> None:
    """Serve until SIGTERM."""
    # uvicorn hands the signal on when it has stopped: by default that ends us without `finally`.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Behind the project's own packages: only what is not there comes from it.
    sys.path.append(modal_folder)
    spec = importlib.util.spec_from_file_location("app", APP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["app"] = module
    spec.loader.exec_module(module)
    container = module.Service()
    application = container.api.local()
    try:
        uvicorn.run(application, host="127.0.0.1", port=port, log_config=None)
    finally:
        container._end_retrieval()  # what the exit hook does; locally nobody calls it


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
