#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Runs the test suite as an ordinary user. Must be started by root.
#
#   tools/test-as-user.sh [pytest arguments]
#
# The user, nsboxtest, is a system user that is made when missing, with ranges of subordinate ids.
# Nothing is written in the checkout; if that user cannot read it (a clone below /root, a strict
# umask), a copy of the tree with an environment of its own is used instead.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

PATH=$PATH:/usr/sbin:/sbin
USER_NAME=nsboxtest
IDS=65536

is_root || die "test-as-user.sh makes a user and switches to it: run it as root, or just run pytest"

# One run at a time: two would see each other's processes, as they have the same user.
exec 9>/run/lock/nsbox-test-user.lock
flock --nonblock 9 || {
    say "waiting for another run of the tests as $USER_NAME"
    flock 9
}


if ! id "$USER_NAME" >/dev/null 2>&1; then
    say "making the system user $USER_NAME"
    useradd --system --user-group --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin "$USER_NAME"
fi
touch /etc/subuid /etc/subgid
first=$(awk -F: 'BEGIN { top = 100000 } $2 + $3 > top { top = $2 + $3 } END { print top }' \
    /etc/subuid /etc/subgid) # the first id that no range reaches
for kind in uid gid; do
    if ! grep -q "^$USER_NAME:" "/etc/sub$kind"; then
        usermod "--add-sub${kind}s" "$first-$((first + IDS - 1))" "$USER_NAME"
    fi
done
uid=$(id -u "$USER_NAME") gid=$(id -g "$USER_NAME")

scratch=$(mktemp -d /tmp/nsbox-user.XXXXXX)
chmod 755 "$scratch"
cleanup() { rm -rf --one-file-system "$scratch"; }
trap cleanup EXIT
install -d -m 700 -o "$uid" -g "$gid" "$scratch/home" "$scratch/run" "$scratch/tmp"

# A clean environment: root's would name directories that this user cannot enter.
as_user() {
    local pass=() name
    for name in CI LANG LC_ALL TERM COLUMNS HYPOTHESIS_PROFILE $(compgen -e NSBOX_ || true); do
        [ -z "${!name+set}" ] || pass+=("$name=${!name}")
    done
    env -i "${pass[@]}" PATH="$tree/.venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin" \
        HOME="$scratch/home" XDG_RUNTIME_DIR="$scratch/run" TMPDIR="$scratch/tmp" \
        USER="$USER_NAME" LOGNAME="$USER_NAME" PYTHONDONTWRITEBYTECODE=1 \
        HYPOTHESIS_STORAGE_DIRECTORY="$scratch/tmp/hypothesis" \
        setpriv --reuid "$uid" --regid "$gid" --clear-groups --inh-caps=-all -- "$@" 9>&-
}

can_read() {
    as_user sh -c 'cd "$1" && .venv/bin/python -c "import nsbox, pytest"' - "$tree" 2>/dev/null &&
        [ -z "$(as_user find "$tree" \( -name .git -o -name .venv -o -name build \) -prune \
            -o ! -readable -print -quit 2>&1)" ]
}

tree=$ROOT
if ! can_read; then
    say "$USER_NAME cannot read $ROOT: testing a copy"
    tree=$scratch/nsbox
    (umask 022 && mkdir "$tree" && tar -c --exclude=./.git --exclude=./.venv --exclude=./build \
        --exclude=./docs/_build --exclude=./.hypothesis . | tar -x -C "$tree" --no-same-owner)
    chmod -R a+rX "$tree"
    "$tree/tools/bootstrap.sh" test 9>&-
    can_read || die "$USER_NAME cannot run $(readlink -f "$tree/.venv/bin/python"): is it in a" \
        "home that only its owner may enter? Use another: make clean test PYTHON=/usr/bin/python3"
fi

say "the suite as $USER_NAME ($uid)"
export NSBOX_REQUIRE=${NSBOX_REQUIRE_USER-}
unset NSBOX_REQUIRE_ROOT NSBOX_REQUIRE_USER
status=0
cd "$tree"
as_user "$tree/.venv/bin/python" -m pytest -p no:cacheprovider \
    --basetemp="$scratch/tmp/pytest" "$@" || status=$?

# Whatever this user still runs was left behind: under the lock nobody else uses the name.
left=
for _ in $(seq 50); do
    left=$(ps -o pid=,stat=,args= -u "$uid" || true)
    [ -n "$left" ] || break
    sleep 0.1
done
if [ -n "$left" ]; then
    say "left running 5 s after the tests; killing them:"
    printf '%s\n' "$left" >&2
    awk '{ print $1 }' <<<"$left" | xargs -r kill -KILL 2>/dev/null || true
    [ "$status" != 0 ] || status=1
fi
exit "$status"
