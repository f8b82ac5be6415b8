# A version whose starts are counted is followed by the other one by itself. One that was good is not: if its root cannot be mounted any more,
# it gets no tries while there is another one.
set -eu

# What fails later would fail in the other version, too. A root that dm-verity has refused may be mounted all the same: its first block may be
# as it should be.
if [ -e /sysroot/usr/lib/os-release ] && ! systemctl is-failed --quiet systemd-veritysetup@root.service; then exit 0; fi
# UTF-16 of a name in ASCII, behind four bytes of attributes. It can be read from its beginning only: the kernel has no seeking there.
selected=$(LC_ALL=C tr -cd '[:print:]' < /sys/firmware/efi/efivars/LoaderEntrySelected-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f)

set -- /dev/slot/*
disk=$(basename "$(dirname "$(readlink -f "/sys/class/block/$(basename "$(readlink -f "$1")")")")")
for partition in "/sys/class/block/$disk/$disk"*; do
    if grep -qx PARTNAME=esp "$partition/uevent"; then esp=/dev/$(basename "$partition"); fi
done
mkdir -p /run/k3s-os/efi
mount -t vfat "$esp" /run/k3s-os/efi
cd /run/k3s-os/efi/EFI/Linux
if [ -e "$selected" ]; then
    for other in k3s_*.efi; do
        case $other in "$selected" | *+0*) continue ;; esac
        echo "edge: the root of $selected cannot be used: $other is started from here on"
        mv "$selected" "${selected%.efi}+0-1.efi"
        break
    done
fi
cd /
umount /run/k3s-os/efi
