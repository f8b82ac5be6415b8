#!/bin/bash
# dracut's module of what is in images/edge/initrd.
check() { return 0; }
depends() { echo systemd-initrd; }
install() {
    inst_multiple bash basename blkid cat cut dd dirname e2fsck fsck.vfat grep ln mkdir mkfs.ext4 mke2fs mount mv readlink sleep sync systemctl \
        systemd-id128 systemd-repart tr udevadm umount
    inst_simple /usr/lib/systemd/systemd-growfs
    inst_simple "$moddir/edge-data.sh" /usr/lib/edge-data.sh
    inst_simple "$moddir/edge-other-slot.sh" /usr/lib/edge-other-slot.sh
    inst_simple "$moddir/edge-data.service" /usr/lib/systemd/system/edge-data.service
    inst_simple "$moddir/61-k3s-slot.rules" /usr/lib/udev/rules.d/61-k3s-slot.rules
    inst_simple "$moddir/root-failure.conf" /usr/lib/systemd/system/systemd-veritysetup@root.service.d/root-failure.conf
    inst_simple "$moddir/emergency.service" /usr/lib/systemd/system/emergency.service
    mkdir -p "$initdir/usr/lib/systemd/system/initrd-fs.target.requires"
    ln -s ../edge-data.service "$initdir/usr/lib/systemd/system/initrd-fs.target.requires/edge-data.service"
}
