#!/bin/bash
# dracut's module of what is in images/edge/initrd.
check() { return 0; }
depends() { echo systemd-initrd; }
install() {
    inst_multiple bash basename blkid cat cut dirname e2fsck fsck.vfat ln mkdir mkfs.ext4 mke2fs mount mv readlink sleep sync systemctl systemd-id128 \
        systemd-repart udevadm wc
    inst_simple /usr/lib/systemd/systemd-growfs
    inst_simple "$moddir/edge-data.sh" /usr/lib/edge-data.sh
    inst_simple "$moddir/edge-data.service" /usr/lib/systemd/system/edge-data.service
    inst_simple "$moddir/emergency.service" /usr/lib/systemd/system/emergency.service
    mkdir -p "$initdir/usr/lib/systemd/system/initrd-fs.target.requires"
    ln -s ../edge-data.service "$initdir/usr/lib/systemd/system/initrd-fs.target.requires/edge-data.service"
}
