#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Makes sure that the system's packages for the named groups are there.
#
#   tools/packages.sh build|run|fuzz|kernels ...
#
# As root on Debian and its kin it installs what is missing. Otherwise it prints the one command to
# run, and fails if something is missing without which the next step cannot work.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

PATH=$PATH:/usr/sbin:/sbin

has_command() { command -v "$1" >/dev/null; }
has_package() { dpkg -s "$1" 2>/dev/null | grep -q '^Status:.* installed$'; }
has_header() { printf '#include <%s>\n' "$1" | "${CC:-gcc}" -E ${2:+"$2"} - >/dev/null 2>&1; }
has_fuzzer() { compgen -G "$(clang -print-resource-dir 2>/dev/null)/lib/*/libclang_rt.fuzzer*" >/dev/null; }
has_module() { "$python" -c "import $1" 2>/dev/null; }
python_include() {
    "$python" -c 'import sysconfig; print("-I" + sysconfig.get_path("include"))'
}

required=() optional=()
require() { local package=$1; shift; "$@" || required+=("$package"); }
want() { local package=$1; shift; "$@" || optional+=("$package"); }

for group in "$@"; do
    case $group in
    build) # for the virtual environment and the two compiled parts
        python=$(find_python)
        require python3-venv has_module "venv, ensurepip"
        require gcc has_command "${CC:-gcc}"
        require libc6-dev has_header sys/mount.h
        require python3-dev has_header Python.h "$(python_include)"
        ;;
    run) # what the examples and the tests start
        require util-linux has_command setpriv
        want uidmap has_command newuidmap
        want iproute2 has_command ip
        want nftables has_command nft # a witness of the tests
        want iputils-ping has_command ping
        want procps has_command ps
        want busybox-static has_package busybox-static # the root file systems of the tests
        want passt has_command pasta # these lead out of an ordinary user's networks
        want slirp4netns has_command slirp4netns
        ;;
    fuzz) # libFuzzer, with the sanitizers
        require clang has_command clang
        require libclang-rt-dev has_fuzzer
        ;;
    kernels) # other kernels in QEMU
        require qemu-system-x86 has_command qemu-system-x86_64
        require linux-image-amd64 has_package linux-image-amd64
        require busybox-static has_package busybox-static
        require e2fsprogs has_command mke2fs
        require xz-utils has_command xz
        require zstd has_command zstd
        require kmod has_command depmod
        ;;
    *) die "packages.sh: no such group: $group" ;;
    esac
done

missing=("${required[@]}" "${optional[@]}")
[ ${#missing[@]} -gt 0 ] || exit 0

if is_root && has_command apt-get; then
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    # a stale or partly unreachable index may still do: what counts is the installation
    apt-get update -qq || say "apt-get update failed; going on with the index as it is"
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    if ! apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >"$log" 2>&1; then
        cat "$log" >&2
        die "apt-get install failed"
    fi
    exit
fi

if has_command apt-get; then
    how="sudo apt-get install -y ${missing[*]}"
else
    how="install what this system calls ${missing[*]} (names as on Debian)"
fi
if [ ${#required[@]} -gt 0 ]; then
    die "missing: ${required[*]}. Run this once, then try again:
    $how"
fi
say "not installed, so some features will be unavailable: ${optional[*]}. To get them: $how"
