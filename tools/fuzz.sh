#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The checker of plans (csrc/plan.c) under a coverage-guided fuzzer with the sanitizers.
#
#   tools/fuzz.sh [SECONDS]        60 when not given
#
# First a checker with a planted fault: a fuzzer that does not find that one would prove nothing.
# What is found is in .cache/fuzz/, and the plans that led to new paths stay there for the next run.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

seconds=${1:-60}
FAULT='s/in_pool(s, value) \&\& n <= s->size - value/in_pool(s, value)/'
FLAGS=(-std=gnu11 -D_GNU_SOURCE -Wall -Wextra -Werror -g -O1 -fno-omit-frame-pointer
    -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -Icsrc -Itests/core)
LIMITS=(-max_len=16384 -timeout=10 -rss_limit_mb=1024 -use_value_profile=1 -verbosity=0)

mkdir -p .cache/fuzz/corpus
"$VENV/bin/python" tests/core/seeds.py .cache/fuzz/seeds
build() { clang "${FLAGS[@]}" tests/core/fuzz.c tests/core/follow.c "$1" -o "$2"; }

sed "$FAULT" csrc/plan.c >.cache/fuzz/faulty.c
! cmp -s csrc/plan.c .cache/fuzz/faulty.c || die "fuzz.sh: csrc/plan.c has no such line any more"
build .cache/fuzz/faulty.c .cache/fuzz/faulty
say "a checker with a planted fault"
scratch=$(mktemp -d .cache/fuzz/faulty.XXXXXX)
trap 'rm -rf "$scratch"' EXIT
if .cache/fuzz/faulty "${LIMITS[@]}" -max_total_time=60 -artifact_prefix="$scratch/" \
    "$scratch" .cache/fuzz/seeds >"$scratch.log" 2>&1; then
    die "fuzz.sh: 60 s did not find the planted fault: see $scratch.log"
fi
grep -q 'heap-buffer-overflow' "$scratch.log" || { cat "$scratch.log" >&2; die "fuzz.sh: failed"; }
rm "$scratch.log"
echo "found"

build csrc/plan.c .cache/fuzz/checker
say "the checker of plans, $seconds s"
log=.cache/fuzz/checker.log
.cache/fuzz/checker "${LIMITS[@]}" -max_total_time="$seconds" -print_final_stats=1 \
    -artifact_prefix=.cache/fuzz/ .cache/fuzz/corpus .cache/fuzz/seeds >"$log" 2>&1 || {
    tail -n 60 "$log" >&2
    die "fuzz.sh: the checker, or what trusts it, failed; the plan is in .cache/fuzz/"
}
echo "nothing found in $(awk '/number_of_executed_units/ { print $2 }' "$log") plans"
