#!/bin/sh
# Pins every dependency with hashes and without a download address. Three files, one resolution:
# requirements.lock is what runs, requirements-ui.lock adds the chat page (Streamlit doubles the
# size, so only those who want it get it), requirements-dev.lock adds what tests and checks.
set -eu
cd "$(dirname "$0")/.."
if ! command -v uv >/dev/null 2>&1; then
  echo "make lock needs uv (https://docs.astral.sh/uv): pip install uv" >&2
  exit 2
fi
compile() {
  uv pip compile --quiet --generate-hashes --universal --python-version 3.11 \
    --no-header --no-annotate --no-emit-index-url --group setup \
    --extra server --extra service --extra postgres --extra cost --extra tokens "$@" pyproject.toml
}
compile ${UPGRADE:+--upgrade} -o requirements.lock
compile --extra ui -c requirements.lock -o requirements-ui.lock
compile --extra dev -c requirements-ui.lock -o requirements-dev.lock
