"""A data partition that is full, damaged, or beyond mending: each is said, what can be mended is, and with an empty one a machine is itself
again where its first-boot file wants that."""

from edge import FAILED, Edge

nodes = {"kiosk": {"boot": "disk", "updates": ["2"],
                   "first_boot": {"keep-identity": True, "config": {"disable": ["coredns", "local-storage", "metrics-server", "traefik"]}}}}

from boot import DiskBoot

# Copies of the superblock lie at the beginning of these groups of blocks, of 128 MiB each.
GROUP = 128 << 20
COPIES = [1, 3, 5, 7, 9, 25, 27]

# Takes all room, also that which kubelet makes meanwhile by removing images that nobody uses.
FILL = "while :; do dd if=/dev/zero of=/var/full2 bs=64K oflag=append conv=notrunc 2> /dev/null; sleep 0.2; done"

edge = Edge(machine)


def overwrite(offsets):
    """The disk loses what is at these places of the data partition, and the 4 KiB behind each."""
    begin = 512 * int(machine.succeed("cat /sys/class/block/$(basename $(readlink -f /dev/disk/by-partlabel/data))/start"))
    machine.shutdown()
    with open(DiskBoot.disk(machine.qemu.dir), "r+b") as disk:
        for offset in offsets:
            disk.seek(begin + offset)
            disk.write(bytes(4096))
    machine.start()


start_all()
machine.wait_for_unit("k3s.service")
edge.wait_until_ready()
edge.keep("kept", 1)
before = edge.identity(), edge.objects()

with subtest("a full partition keeps the cluster's data, and what it does not take is said"):
    # Not all at once: what runs takes some meanwhile, and the file itself takes more than its bytes.
    machine.succeed("fallocate -l $(($(stat -f -c '%a*%S' /var) - (64 << 20))) /var/full; ! dd if=/dev/zero of=/var/full2 bs=64K 2> /dev/null")
    machine.succeed(f"systemd-run --quiet --unit=fill bash -c '{FILL}'")
    said = edge.refused("k3s os update /dev/disk/by-id/virtio-k3s_2.update")[1]
    log(said)
    t.assertIn("no snapshot could be taken, and nothing was updated", said)
    t.assertRegex(said, "make room|has to be writable and have free space")
    t.assertEqual(edge.status()["next"], "1")
    edge.restarted()
    t.assertEqual(edge.version(), "1")
    log(machine.execute("k3s status; journalctl -b -p warning -o cat -u k3s.service -n 10")[1])
    machine.succeed("rm /var/full /var/full2")
    edge.wait_until_ready()
    t.assertEqual((edge.identity(), edge.objects()), before)

with subtest("a damaged one is mended, and the machine is as it was"):
    overwrite([0])
    machine.wait_for_unit("k3s.service")
    t.assertIn("The data partition was damaged, and was mended", machine.succeed("cat /efi/status.txt"))
    edge.wait_until_ready()
    t.assertEqual((edge.identity(), edge.objects()), before)
    retry(lambda _: "was mended" in edge.events("DataPartitionDamaged"))
    t.assertEqual(machine.succeed(FAILED), "")

with subtest("one that cannot be mended is replaced after a restart, and the machine is itself again, with a new cluster"):
    machine_id, password = machine.succeed("cat /etc/machine-id /etc/rancher/node/password").split()
    overwrite([0, *(group * GROUP for group in COPIES)])
    machine.wait_for_unit("k3s.service")
    said = machine.succeed("cat /efi/status.txt")
    t.assertIn("The data partition could not be mended, and was replaced by an empty one", said)
    t.assertIn("taken as the ESP has kept it: this machine is kiosk, role server", said)
    t.assertIn("if a restart changes nothing, it is replaced by an empty one", machine.get_console_log())
    edge.wait_until_ready()
    t.assertEqual(machine.succeed("cat /etc/machine-id /etc/rancher/node/password").split(), [machine_id, password])
    t.assertEqual(edge.objects(), {})
    retry(lambda _: "replaced by an empty one" in edge.events("DataPartitionDamaged"))
    t.assertEqual(machine.succeed(FAILED), "")
