# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Shared by the scripts beside it; sourced, never run. Leaves the caller at the project's root.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
ROOT=$PWD
VENV=$ROOT/.venv
export PYTHONDONTWRITEBYTECODE=1
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_INPUT=1

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
die() { printf 'nsbox: %s\n' "$*" >&2; exit 1; }
is_root() { [ "$(id -u)" = 0 ]; }

# The interpreter for the virtual environment: $PYTHON, else the system's, else the first on PATH.
# The system's comes first since one below a home of mode 0700 (pyenv) cannot be started by the
# ordinary user for whom the tests run a second time.
find_python() {
    local candidate
    for candidate in ${PYTHON:-/usr/bin/python3 python3}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "needs Python 3.10 or later (tried: ${PYTHON:-/usr/bin/python3 python3}); set PYTHON="
}
