#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# gcc's warnings and static analyser over csrc, each file alone; a warning fails.
#
# Twice: -O2 is how it is built, and only there the compiler follows values far enough to see the
# uninitialised ones; the analyser sees most at -O0, before dead calls are optimised away.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

python=$(find_python)
status=0
for product in extension init; do
    mapfile -t flags < <("$python" tools/cflags.py "$product" flags)
    mapfile -t sources < <("$python" tools/cflags.py "$product" sources)
    [ -n "${sources[*]-}" ] || continue
    for level in "-O2" "-O0 -U_FORTIFY_SOURCE"; do
        # shellcheck disable=SC2086  # $level is a list of words
        printf '%s\n' "${sources[@]}" | xargs -d '\n' -n 1 -P "$(nproc)" \
            gcc "${flags[@]}" $level -Werror -fanalyzer -c -o /dev/null || status=1
    done
done
[ "$status" = 0 ] || die "the compiler found something: see above"
