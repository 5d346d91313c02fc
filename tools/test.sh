#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Runs the test suite: as root once as root and once as an ordinary user, otherwise just as we are.
#
#   tools/test.sh [pytest arguments]
#
# NSBOX_REQUIRE=root,userns,…  turns skips of these marks into failures. The two runs can offer
# different things, so NSBOX_REQUIRE_ROOT and NSBOX_REQUIRE_USER, where set, say it for one of them.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

export PATH=$VENV/bin:$PATH
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES ARGS # a make below a test is on its own

if ! is_root; then
    export NSBOX_REQUIRE=${NSBOX_REQUIRE_USER-${NSBOX_REQUIRE:-}}
    exec "$VENV/bin/python" -m pytest "$@"
fi

status=0
say "the suite as root"
NSBOX_REQUIRE=${NSBOX_REQUIRE_ROOT-${NSBOX_REQUIRE:-}} \
    "$VENV/bin/python" -m pytest -p no:cacheprovider "$@" || status=$?
"$ROOT/tools/test-as-user.sh" "$@" || status=$?
exit "$status"
