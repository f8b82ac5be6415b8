"""Versions that do not come as far as their system: a root that has decayed, before and after it was called good, and a kernel that panics. The
machine comes back by itself on the one of before, as what it was."""

from edge import SET, Edge

# What a machine needs to be one; there is no server.
nodes = {"kiosk": {"boot": "disk", "memory": 1024, "updates": ["2"],
                   "first_boot": {"role": "agent", "config": {"server": "https://192.168.1.9:6443", "token": "nobody-takes-it"}}}}

SET = SET.format(2)
# Of the new root, behind its first block: without that one udev would not find the slot, and systemd would wait for it as long as for a slow disk.
CHANGE_BLOCK = "head -c 4096 /dev/urandom | dd of=/dev/disk/by-partlabel/root-b bs=4096 seek=8 conv=notrunc,fsync 2>&1"

edge = Edge(machine)


def identity():
    return machine.succeed("cat /etc/machine-id; hostname; cat /etc/rancher/k3s/config.yaml")


def comes_back(tries):
    """The machine restarts, has started 2 as often as this, and is on 1 again."""
    edge.restarted()
    t.assertEqual(edge.version(), "1")
    bad = edge.status()["slots"][1]
    t.assertEqual((bad["version"], bad["state"], bad["tries_done"]), ("2", "bad", tries))
    retry(lambda _: edge.status()["last_trial"] == {"version": "2", "failure": "it did not come up"})
    t.assertEqual(identity(), before)


start_all()
machine.wait_for_unit("k3s-os-configure.service")
before = identity()

with subtest("a good version whose root has decayed makes room for the other one"):
    machine.succeed(f"k3s os update {SET} 2>&1")
    # As if it had shown that it is good.
    machine.succeed("mv /efi/EFI/Linux/k3s_2+3.efi /efi/EFI/Linux/k3s_2.efi")
    machine.succeed(CHANGE_BLOCK)
    comes_back(1)

with subtest("a root with a changed block is refused by dm-verity"):
    machine.succeed(f"k3s os update {SET} 2>&1")
    machine.succeed(CHANGE_BLOCK)
    comes_back(3)

with subtest("a kernel that ends in a panic is tried three times"):
    machine.succeed(f"k3s os update {SET} 2>&1")
    # In the command line of the kernel image, at the same length: what is behind it stays where it is.
    part, panics = "quiet rd.shell=0", "rdinit=/nothing"
    machine.succeed(f"sed -i 's|{part}|{panics.ljust(len(part))}|' /efi/EFI/Linux/k3s_2+3.efi")
    comes_back(3)
