#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# PID 1 in the initramfs: mount everything while programs still come from RAM, then hand over to
# guest.sh in the new root. /config (made by vmrun.py): MODULES_DIR RELEASE RO RW DISK VERBOSE.
PATH=/bin
. /config

die() {
    echo "nsbox-vm: $*"
    poweroff -f
    sleep 60
}
N=/newroot
P9=trans=virtio,version=9p2000.L,msize=512000

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /mod/*; do
    insmod "$module" || echo "nsbox-vm: insmod $module failed"
done

# cache=loose saves most round trips; the price is that a file must not change meanwhile.
mount -t 9p -o "ro,$P9,access=any,cache=loose" root /lower || die "cannot mount the host's root"
mount -t tmpfs -o mode=0755,size=75% upper /overlay || die "cannot mount a tmpfs"
mkdir /overlay/upper /overlay/work
mount -t overlay -o lowerdir=/lower,upperdir=/overlay/upper,workdir=/overlay/work overlay $N ||
    die "cannot mount the overlay"

if [ -n "$DISK" ]; then
    mount -t ext4 /dev/vda $N/mnt || die "cannot mount the scratch disk"
    chmod 1777 $N/mnt
fi

mount --move /proc $N/proc
mount --move /sys $N/sys
mount --move /dev $N/dev
mkdir -p $N/dev/pts $N/dev/shm $N/dev/mqueue
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts $N/dev/pts
mount -t tmpfs -o mode=1777 shm $N/dev/shm
mount -t mqueue mqueue $N/dev/mqueue
mount -t tmpfs -o mode=0755 run $N/run
# not the overlay: its files cannot be the upper layer of another overlay
mount -t tmpfs -o mode=1777,size=50% tmp $N/tmp
mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 $N/sys/fs/cgroup ||
    die "cannot mount cgroup2"
mount -t securityfs securityfs $N/sys/kernel/security
mount -t bpf bpf $N/sys/fs/bpf

mkdir -p "$N/lib/modules/$RELEASE"
[ -e "$N/lib/modules/$RELEASE/modules.dep" ] ||
    mount --bind "/lower$MODULES_DIR" "$N/lib/modules/$RELEASE"

IFS='
'
for pair in $RO; do # directory of the host, tab, place here
    dir=${pair#*	}
    mkdir -p "$N$dir"
    mount --bind "/lower${pair%%	*}" "$N$dir" || die "cannot show $dir"
done
i=0 # access=user: what a user makes there is theirs
for dir in $RW; do
    mkdir -p "$N$dir"
    mount -t 9p -o "$P9,access=user,cache=mmap" rw$i "$N$dir" || die "cannot share $dir"
    i=$((i + 1))
done
unset IFS

mkdir -p $N/run/nsbox-vm/report
chmod 700 $N/run/nsbox-vm/report
mount -t 9p -o "$P9,access=any,cache=none" report $N/run/nsbox-vm/report || die "cannot mount the report"
cp -a /bin /config /guest.sh /command.sh $N/run/nsbox-vm/
ifconfig lo 127.0.0.1 up
hostname nsbox-vm
exec switch_root $N /run/nsbox-vm/bin/sh /run/nsbox-vm/guest.sh
