#!/bin/sh
# Creates .venv and installs the locked dependencies and this project into it.
#
#   sh scripts/setup.sh run|ui|dev      PYTHON=/path/to/python3.12 picks the interpreter
#
# Works with uv, with python3 + venv, and with a Python that lacks ensurepip (Debian without
# python3-venv) as long as it has pip. A second call with nothing changed returns at once and
# needs no network.
set -eu
cd "$(dirname "$0")/.."

case "${1:-run}" in
  run) lock=requirements.lock ;;
  ui) lock=requirements-ui.lock ;;
  dev) lock=requirements-dev.lock ;;
  *) echo "usage: sh scripts/setup.sh run|ui|dev" >&2; exit 2 ;;
esac
say() { printf '%s\n' "$*" >&2; }

# The stamp names what was installed; each set contains the ones before it.
fingerprint_of() { cat "$1" pyproject.toml scripts/setup.sh | cksum | tr -d ' '; }
fingerprint=$(fingerprint_of "$lock")
stamp=".venv/.installed-$lock"
installed() {
  [ -x .venv/bin/python ] && .venv/bin/python -c "" 2>/dev/null &&
    [ "$(cat "$stamp" 2>/dev/null)" = "$fingerprint@$(pwd)" ]
}
installed && exit 0

# --- which Python ---------------------------------------------------------------------------
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
python=
seen=
# An interpreter that was named is not silently replaced by another.
if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3 python3.13 python3.12 python3.11 python; fi
for candidate in "$@"; do
  if new_enough "$candidate"; then python=$candidate; break; fi
  version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
    version="not a working Python"
  [ -z "${PYTHON:-}" ] && ! command -v "$candidate" >/dev/null 2>&1 || seen="${seen:+$seen,} $candidate is $version"
done
uv=
if command -v uv >/dev/null 2>&1; then uv=uv; fi
if [ -z "$python" ] && { [ -z "$uv" ] || [ -n "${PYTHON:-}" ]; }; then
  say "Spanloom needs Python 3.11 or newer:${seen:- no python found}. Install one (Debian 12, Ubuntu 24.04: apt install python3 python3-venv; macOS: brew install python) or name it: make run PYTHON=/path/to/python3.12"
  exit 2
fi

# --- the environment ---------------------------------------------------------------------------
if [ -x .venv/bin/python ] && ! new_enough .venv/bin/python; then
  say "removing .venv: its Python is older than 3.11, or gone"
  rm -rf .venv
fi
if [ ! -x .venv/bin/python ]; then
  rm -rf .venv
  say "creating .venv${python:+ with $python}"
  if [ -n "$uv" ]; then
    uv venv --quiet --python "${python:->=3.11}" .venv
  elif ! "$python" -m venv .venv >/dev/null 2>&1; then
    rm -rf .venv
    if ! "$python" -m pip --version >/dev/null 2>&1 ||
       ! "$python" -m venv --without-pip .venv; then
      say "$python has neither venv with ensurepip nor pip. Install one of them (Debian and Ubuntu: apt install python3-venv) or uv, then try again."
      exit 2
    fi
  fi
fi

# --- the packages ---------------------------------------------------------------------------------
if [ -n "$uv" ]; then
  install() { uv pip install --quiet --python .venv/bin/python "$@"; }
elif .venv/bin/python -m pip --version >/dev/null 2>&1; then
  install() { .venv/bin/python -m pip --quiet --disable-pip-version-check install "$@"; }
elif "$python" -m pip --version >/dev/null 2>&1; then
  install() { "$python" -m pip --quiet --disable-pip-version-check --python .venv/bin/python install "$@"; }
else
  say "no pip for .venv: remove .venv and install uv, or python3-venv, or pip for $python"
  exit 2
fi
count=$(grep -c '==' "$lock")
say "installing $count pinned packages from $lock (about half a minute)"
install --require-hashes -r "$lock"
# hatchling is in the lock, so that building the project itself needs no network.
install --no-deps --no-build-isolation -e .

for contained in requirements.lock requirements-ui.lock requirements-dev.lock; do
  printf '%s' "$(fingerprint_of "$contained")@$(pwd)" > ".venv/.installed-$contained"
  [ "$contained" != "$lock" ] || break
done
