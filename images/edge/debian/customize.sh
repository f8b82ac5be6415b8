#!/bin/sh
# customize.sh ROOT: makes a Debian tree the tree of the edge image, without the package, and leaves kernel and initrd in its /boot.
# Run with the tree's /proc and /dev mounted.
set -eu
here=$(dirname "$(dirname "$(readlink -f "$0")")") root=$1
kernel=$(ls "$root/usr/lib/modules")

module=$root/usr/lib/dracut/modules.d/50edge-data
mkdir -p "$module"
cp "$here/debian/module-setup.sh" "$here"/initrd/* "$module/"
chmod 755 "$module/module-setup.sh"
# FAT cannot be mounted without its code page, which nothing names as needed.
chroot "$root" dracut --quiet --force --no-hostonly --no-hostonly-cmdline --reproducible --zstd --kver "$kernel" \
    --modules "systemd systemd-initrd systemd-udevd systemd-journald systemd-modules-load systemd-veritysetup dm kernel-modules fs-lib udev-rules base shutdown edge-data" \
    --drivers "virtio_blk virtio_scsi virtio_pci nvme ahci sd_mod usb_storage uas mmc_block sdhci_pci sdhci_acpi xhci_pci erofs ext4 vfat nls_cp437 nls_ascii dm_verity loop" \
    --filesystems "erofs ext4 vfat" /boot/initrd 2> "$root/boot/dracut.log" || { cat "$root/boot/dracut.log" >&2; exit 1; }
mv "$root/boot/vmlinuz-$kernel" "$root/boot/linux"
find "$root/boot" -mindepth 1 ! -name linux ! -name initrd -delete

cp -r "$here/root/." "$root/"
mkdir -p "$root/usr/lib/repart.d" "$root/efi"
# As the package's other forms have them.
cp -r "$here/../systemd/." "$root/usr/lib/systemd/system/"
for folder in modules-load.d sysctl.d; do
    cp -r "$here/../extension/usr/lib/$folder/." "$root/usr/lib/$folder/"
done
cp "$here"/repart.d/*.conf "$root/usr/lib/repart.d/"
# The rest of /etc is the image's own.
ln -sfn /var/lib/rancher/etc "$root/etc/rancher"
rm -rf "$root/etc/systemd/network"
ln -sfn /var/lib/k3s-os/network "$root/etc/systemd/network"
ln -sfn /var/lib/k3s-os/hostname "$root/etc/hostname"
ln -sfn /run/systemd/resolve/resolv.conf "$root/etc/resolv.conf"
echo uninitialized > "$root/etc/machine-id"
systemctl --root="$root" enable --quiet systemd-networkd.service systemd-networkd-wait-online.service efi.automount k3s-os-configure.service k3s-os-good.service k3s-os-returned.service k3s.service k3s-agent.service
# Nobody logs in, and nothing waits for an answer on the console.
systemctl --root="$root" mask --quiet systemd-firstboot.service getty.target serial-getty@.service getty@.service console-getty.service \
    systemd-machine-id-commit.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service
# What nobody reads or runs here; licences stay. udev's database is the compiled one.
find "$root/usr/share/doc" -mindepth 2 ! -type d ! -name copyright -delete
find "$root/usr/share/doc" -type d -empty -delete
rm -rf "$root/usr/lib/udev/hwdb.d" "$root/usr/bin/sqv" "$root"/usr/lib/*/libapt-*.so.* "$root/usr/share/zsh" "$root/usr/share/lintian"
