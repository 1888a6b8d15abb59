#!/bin/sh
# Makes .venv and installs the locked packages and this package into it. Does nothing, at once, when that is done already.
set -eu
cd "$(dirname "$0")"
unset VIRTUAL_ENV PYTHONHOME PYTHONPATH CONDA_PREFIX PIP_USER PIP_TARGET PIP_PREFIX UV_SYSTEM_PYTHON UV_TARGET || true

venv=.venv
stamp=$venv/.installed
state="$(cat bootstrap.sh pyproject.toml requirements.lock | cksum) $(pwd -P)"
[ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$state" ] && exit 0

fail() { echo "make: $*" >&2; exit 1; }

# Prints the interpreter itself, not a shim or an environment's link to it; fails below 3.11.
base_python='import sys; sys.version_info >= (3, 11) or sys.exit(1); print(getattr(sys, "_base_executable", sys.executable))'

find_python() {
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.15 python3.14 python3.13 python3.12 python3.11 python; do
        "$candidate" -c "$base_python" 2>/dev/null && return
    done
    fail "no Python 3.11 or newer found (looked for ${PYTHON:+$PYTHON, }python3, python3.11 to python3.15). Install one, or name it: make PYTHON=/path/to/python3"
}

make_venv() {
    python=$(find_python)
    echo "Making $venv with $python ($("$python" -V))"
    rm -rf "$venv"
    if uv --version >/dev/null 2>&1; then
        uv venv -q --python "$python" "$venv"
    elif ! "$python" -m venv "$venv" >"$venv.log" 2>&1; then
        cat "$venv.log" >&2
        rm -rf "$venv" "$venv.log"
        fail "$python could not make a virtual environment. On Debian and Ubuntu: sudo apt install python3-venv, then run make again."
    fi
    rm -f "$venv.log"
}

"$venv/bin/python" -c "$base_python" >/dev/null 2>&1 || make_venv
rm -f "$stamp"

if uv --version >/dev/null 2>&1; then
    uv=uv
else
    uv=$venv/bin/uv
    if ! [ -x "$uv" ]; then
        echo "Installing uv into $venv"
        awk '/^[^ ]/ { uv = /^uv==/ } uv' requirements.lock >"$venv/uv.lock"
        "$venv/bin/python" -m pip install -q --disable-pip-version-check --require-hashes -r "$venv/uv.lock" ||
            fail "uv could not be installed, see above. The first set-up needs the network: if that was missing, run make again."
    fi
fi

echo "Installing the locked packages (the first time a download of 3.3 GB on Linux, most of it CUDA, or 0.4 GB elsewhere)"
[ -t 2 ] && quiet= || quiet=-q  # progress bars are for people
"$uv" pip install $quiet --python "$venv/bin/python" --require-hashes -r requirements.lock ||
    fail "the locked packages could not be installed, see above. The first set-up needs the network: if that was missing, run make again."
"$uv" pip install -q --python "$venv/bin/python" --no-deps --no-build-isolation --offline -e .
printf '%s' "$state" >"$stamp"
