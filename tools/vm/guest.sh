#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# PID 1 in the final root: make the place the command runs in, run it, report, stop the machine.
# /config (made by vmrun.py): USER_ID GROUP_ID PASSWD SUBID HOME_DIR OPEN CWD
# SETPRIV ENVIRONMENT VERBOSE.
VM=/run/nsbox-vm
PATH=$VM/bin
. $VM/config

read -r up _ < /proc/uptime
echo "$up" > $VM/report/up
[ -n "$VERBOSE" ] || echo 1 > /proc/sys/kernel/printk   # no kernel lines in the command's output
mount --make-rshared /                                  # as systemd leaves it on real machines
chmod 666 /dev/net/tun /dev/fuse
ulimit -Hn 524288
ulimit -Sn 1024

# $CG belongs to the user; the command runs in a leaf of it, so $CG itself has no processes and
# may pass its controllers on.
CG=/sys/fs/cgroup/test
mkdir $CG
for group in /sys/fs/cgroup $CG; do
    echo '+cpu +cpuset +io +memory +pids' > $group/cgroup.subtree_control
done
mkdir $CG/init

XDG_RUNTIME_DIR=/run/user/$USER_ID
mkdir -p "$XDG_RUNTIME_DIR" "$HOME_DIR"
chmod 700 "$XDG_RUNTIME_DIR"
as_user=
if [ "$USER_ID" != 0 ]; then
    [ -z "$PASSWD" ] || {
        echo "$PASSWD" >> /etc/passwd
        echo "${PASSWD%%:*}:x:$GROUP_ID:" >> /etc/group
    }
    [ -z "$SUBID" ] || { echo "$SUBID" >> /etc/subuid; echo "$SUBID" >> /etc/subgid; }
    chown "$USER_ID:$GROUP_ID" "$XDG_RUNTIME_DIR" "$HOME_DIR"
    for group in $CG $CG/init; do
        chown "$USER_ID:$GROUP_ID" $group
        for file in $(cat /sys/kernel/cgroup/delegate); do
            [ ! -e $group/$file ] || chown "$USER_ID:$GROUP_ID" $group/$file
        done
    done
    IFS='
'
    for dir in $OPEN; do    # in the overlay only: the host's modes stay
        chmod o+x "$dir"
    done
    unset IFS
    as_user="$SETPRIV --reuid $USER_ID --regid $GROUP_ID --clear-groups"
fi

(
    echo 0 > $CG/init/cgroup.procs
    export CG XDG_RUNTIME_DIR HOME="$HOME_DIR" LANG=C.UTF-8 TERM=dumb
    export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    eval "$ENVIRONMENT"
    cd "$CWD" || exit 125
    # shellcheck disable=SC2086 # $as_user is words
    exec $VM/bin/setsid $as_user /bin/sh $VM/command.sh < /dev/null
)
code=$?

# Not for ever: a test's file system whose server hangs would hold it up.
sync &
for _ in 1 2 3 4 5 6 7 8 9 10; do
    kill -0 $! 2> /dev/null || break
    sleep 1
done
echo "$code" > $VM/report/code.part
mv $VM/report/code.part $VM/report/code
# With -no-reboot this ends QEMU, sooner than a power-off.
echo 0 > /proc/sys/kernel/printk
reboot -f -n
sleep 60
