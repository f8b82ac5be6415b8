# Before the root is entered: the data partition is made if it is not there, checked, grown to the disk and mounted as /var, and gives
# the machine its identity. What fails here restarts the machine, which counts the tries of a new version down.
set -eu

root=/sysroot
# Partitions' names would be found on any disk: they count on the disk of the root alone.
set -- "/sys/class/block/$(basename "$(readlink -f /dev/mapper/root)")"/slaves/*
disk=$(basename "$(dirname "$(readlink -f "$1")")")
systemd-repart --dry-run=no --definitions="$root/usr/lib/repart.d" "/dev/$disk"
udevadm settle

named() {
    for partition in "/sys/class/block/$disk/$disk"*; do
        device=/dev/$(basename "$partition")
        if [ "$(blkid -p -s PART_ENTRY_NAME -o value "$device")" = "$1" ]; then echo "$device"; fi
    done
}

efi=/run/k3s-os/efi
mkdir -p "$efi"
esp=$(named esp)
ln -sfn "$esp" /run/k3s-os/esp
# It holds nothing that a start needs from here on.
fsck.vfat -a "$esp" || echo "edge: $esp is damaged: see whether its files are as they should be"

data=$(named data)
if [ -z "$data" ]; then
    echo "edge: /dev/$disk has no room for a data partition: use a disk of 3 GB or more"
    exit 1
fi

mount_data() { mount -t ext4 -o nosuid,nodev,noatime "$data" "$root/var"; }

# The last resort is for what is damaged for good, not for a disk that does not answer now or a version that has no driver: it takes a version
# that is not on trial, and a restart that has found the same.
replace_data() {
    mount -t vfat "$esp" "$efi"
    if [ -e /sys/firmware/efi/efivars/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f ] || [ ! -e "$efi/data-fault" ]; then
        echo "edge: $data cannot be mended: if a restart changes nothing, it is replaced by an empty one"
        echo "The data partition cannot be mended: if a restart changes nothing, it is replaced by an empty one." > "$efi/status.txt"
        : > "$efi/data-fault"
        umount "$efi"
        exit 1
    fi
    echo "edge: $data cannot be mended: it is replaced by an empty one, and what this machine had stored is gone"
    # A start that finds the new one without an identity has to tell the same, where a power cut has ended this one.
    echo replaced > "$efi/data-fault"
    sync "$efi/data-fault"
    umount "$efi"
    mkfs.ext4 -q -F -m 0 "$data"
    mount_data
}

# 1: mended; 2: mended, and a restart is asked for, which a file system that is not mounted does not need.
status=0 fault=
e2fsck -p "$data" || status=$?
if [ "$status" -ge 4 ]; then
    echo "edge: the file system of $data is damaged: it is mended as well as can be, files may be missing"
    status=0 fault=mended
    e2fsck -fy "$data" || status=$?
fi
if ! mount_data; then
    # What is sound, and cannot be mounted, is no case for it.
    [ "$status" -ge 4 ]
    replace_data
fi
/usr/lib/systemd/systemd-growfs "$root/var"

own=$root/var/lib/k3s-os
mkdir -p "$own/network" "$root/var/lib/rancher/etc"
# Not what a power cut leaves of one: nothing, or NUL bytes.
is_id() { grep -qsxE '[0-9a-f]{32}' "$1"; }
# Of a new or replaced partition the identity comes last. Until then the ESP has what is to be told of it, and also who the machine is, if its
# first-boot file wants that kept.
if ! is_id "$own/machine-id"; then
    mount -t vfat -o ro "$esp" "$efi"
    if grep -qsx replaced "$efi/data-fault"; then fault=replaced; fi
    if is_id "$efi/identity/machine-id"; then cat "$efi/identity/machine-id"; else systemd-id128 new; fi > "$own/machine-id.new"
    umount "$efi"
    sync "$own/machine-id.new"
fi
# Told by `k3s os configure`.
if [ -n "$fault" ]; then echo "$fault" > "$own/data-fault"; sync "$own/data-fault"; fi
if ! is_id "$own/machine-id"; then
    mv "$own/machine-id.new" "$own/machine-id"
    sync "$own"
fi
if [ ! -s "$own/hostname" ]; then
    echo "k3s-$(cut -c1-8 "$own/machine-id")" > "$own/hostname.new"
    sync "$own/hostname.new"
    mv "$own/hostname.new" "$own/hostname"
fi
mount --bind "$own/machine-id" "$root/etc/machine-id"
