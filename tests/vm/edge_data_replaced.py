"""A data partition that is replaced while the power goes: the next start goes on from there, and the machine is itself again."""

from edge import FAILED

# There is no server.
nodes = {"kiosk": {"boot": "disk", "memory": 1024,
                   "first_boot": {"role": "agent", "keep-identity": True, "config": {"server": "https://192.168.1.9:6443", "token": "nobody-takes-it"}}}}

import subprocess

from boot import ESP_OFFSET, DiskBoot

IDENTITY = "cat /etc/machine-id /etc/rancher/node/password /etc/rancher/k3s/config.yaml"


def of_data(what):
    """`start` or `size` of the data partition, in bytes."""
    return 512 * int(machine.succeed(f"cat /sys/class/block/$(basename $(readlink -f /dev/disk/by-partlabel/data))/{what}"))


start_all()
machine.wait_for_unit("k3s-os-configure.service")
before = machine.succeed(IDENTITY)

with subtest("the power goes between the new file system and the identity in it"):
    begin, size = of_data("start"), of_data("size")
    machine.shutdown()
    disk = DiskBoot.disk(machine.qemu.dir)
    made = ["mkfs.ext4", "-q", "-F", "-m", "0", "-E", f"nodiscard,offset={begin}", disk, f"{size >> 10}k"]
    subprocess.run(made, check=True)
    subprocess.run(["mcopy", "-o", "-i", f"{disk}@@{ESP_OFFSET}", "-", "::data-fault"], input=b"replaced\n", check=True)
    machine.start()
    machine.wait_for_unit("k3s-os-configure.service")
    said = machine.succeed("cat /efi/status.txt")
    t.assertIn("The data partition could not be mended, and was replaced by an empty one", said)
    t.assertIn("taken as the ESP has kept it: this machine is kiosk, role agent", said)
    t.assertEqual(machine.succeed(IDENTITY), before)
    machine.fail("test -e /efi/data-fault")
    t.assertEqual(machine.succeed(FAILED), "")
