#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Makes .venv with nsbox in it (editable) and the named extras, or brings it up to date.
#
#   tools/bootstrap.sh [EXTRA ...]        e.g. test docs lint
#
# Cheap when nothing changed: what was built from what is remembered as checksums in .venv.
#   PYTHON=…         the interpreter to build from   CC=…   the compiler
#   NSBOX_WERROR=1   compiler warnings are errors
set -euo pipefail
. "$(dirname "$0")/lib.sh"

umask 022 # an ordinary user will run what root builds here
exec 8<"$ROOT"
flock 8 # one at a time per checkout

if [ -d "$VENV" ] && [ ! -w "$VENV" ]; then
    die "$VENV belongs to $(stat -c %U "$VENV"): remove it, or run this as that user"
fi

"$ROOT/tools/packages.sh" build
python=$(find_python)

checksum() { sha256sum | cut -d' ' -f1; }
is_current() { [ -e "$VENV/.nsbox/$1" ] && [ "$(cat "$VENV/.nsbox/$1")" = "$2" ]; }
remember() { mkdir -p "$VENV/.nsbox" && printf '%s\n' "$2" >"$VENV/.nsbox/$1"; }
pip() { "$VENV/bin/python" -m pip --quiet "$@" 8<&-; }

base="$python $("$python" -c 'import sys; print(sys.version)' | tr '\n' ' ')$ROOT"
if ! is_current base "$base"; then
    say "virtual environment from $python"
    "$python" -m venv --clear "$VENV"
    remember base "$base"
fi

tools=$(sed -n 's/^requires = \[\(.*\)\]$/\1/p' pyproject.toml | tr -d '",')
if ! is_current tools "$tools"; then
    # shellcheck disable=SC2086  # a list of words
    pip install $tools # build requirements, here for good: a rebuild needs no network
    remember tools "$tools"
fi

# One stamp for the compiled parts, one for each set of extras that was installed.
code=$({
    printf '%s\n' "${CC:-}" "${NSBOX_WERROR:-}" "${CFLAGS:-}"
    find csrc setup.py tools/cflags.py -type f -not -name '*.py[co]' -print0 | sort -z |
        xargs -0 sha256sum
} | checksum)
metadata=$(checksum <pyproject.toml)
wanted=()
for extra in "$@"; do
    is_current "extra-$extra" "$metadata" || wanted+=("$extra")
done

if ! is_current code "$code" || ! is_current metadata "$metadata" || [ ${#wanted[@]} -gt 0 ] ||
    [ ! -x nsbox/nsbox-init ] || ! compgen -G 'nsbox/_ffi*.so' >/dev/null; then
    spec=.
    [ ${#wanted[@]} -eq 0 ] || spec=".[$(IFS=, && printf %s "${wanted[*]}")]"
    say "pip install -e '$spec'"
    pip install --no-build-isolation --editable "$spec"
    remember code "$code"
    remember metadata "$metadata"
    for extra in "${wanted[@]}"; do remember "extra-$extra" "$metadata"; done
fi
