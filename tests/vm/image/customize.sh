#!/bin/sh
# customize.sh ROOT: makes a Debian root the root of test machines. Run by mmdebstrap, which has /proc mounted.
set -eu
root=$1
: > "$root/etc/machine-id"
rm -f "$root/etc/hostname" "$root/etc/resolv.conf"
printf 'LABEL=dist /opt/k3s ext4 ro 0 0\n' > "$root/etc/fstab"
mkdir -p "$root/opt/k3s" "$root/var/log/journal"
for program in k3s kubectl ctr; do
    ln -s "/opt/k3s/bin/$program" "$root/usr/bin/$program"
done
# Nothing may wait for an answer on the console.
ln -sf /dev/null "$root/etc/systemd/system/systemd-firstboot.service"
systemctl --root="$root" enable --quiet systemd-networkd.service systemd-networkd-wait-online.service
# An initrd with what these machines need and no more, since emulation is slow to unpack it.
printf 'MODULES=list\nCOMPRESS=gzip\n' > "$root/etc/initramfs-tools/conf.d/test"
printf 'virtio_blk\nvirtio_net\next4\n' > "$root/etc/initramfs-tools/modules"
kernel=$(ls "$root/usr/lib/modules")
chroot "$root" update-initramfs -u -k "$kernel"
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
