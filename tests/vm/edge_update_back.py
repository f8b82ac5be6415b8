"""Versions that are no good: the machine comes back by itself on the one of before, with its cluster as it was."""

nodes = {"machine": {"boot": "disk", "updates": ["2", "3"], "trial": "--hold=5s --within=2m", "esp": {"first-boot.yaml": """
hostname: kiosk-7
role: server
network:
- match: {mac: "52:54:00:12:01:01"}
  addresses: [192.168.1.1/24]
  gateways: [192.168.1.254]
config:
  node-ip: 192.168.1.1
  disable: [coredns, local-storage, metrics-server, traefik]
"""}}}

import json

SETS = "/dev/disk/by-id/virtio-k3s_{}.update"
IS_READY = "kubectl wait --for=condition=Ready node/kiosk-7 --timeout=30s"
SAME = "cat /etc/machine-id /etc/rancher/node/password; sha256sum /var/lib/rancher/k3s/server/tls/*.crt; " \
       "kubectl get node kiosk-7 -o jsonpath='{.metadata.uid}'; kubectl get configmap kept -o jsonpath='{.metadata.uid}'"


def status():
    return json.loads(machine.succeed("k3s os status -o json"))


def comes_back(version):
    """The machine restarts, tries `version`, and is on 1 again."""
    boot = machine.boot_id()
    machine.succeed("sync; systemctl reboot --no-block")
    while True:
        machine.wait_for_restart(boot)
        if status()["version"] == "1":
            break
        log(machine.succeed("k3s os status"))
        boot = machine.boot_id()
    bad = status()["slots"][1]
    t.assertEqual((bad["version"], bad["state"]), (version, "bad"))
    machine.wait_until_succeeds(IS_READY)
    t.assertEqual(machine.succeed(SAME), before)


start_all()
machine.wait_for_unit("k3s.service")
machine.wait_until_succeeds(IS_READY)
machine.succeed("kubectl create configmap kept --from-literal=a=1")
before = machine.succeed(SAME)

with subtest("a version whose k3s never gets ready is given up, with its reason"):
    machine.succeed(f"k3s os update {SETS.format(3)} 2>&1")
    comes_back("3")
    t.assertEqual(status()["last_trial"]["version"], "3")
    t.assertIn("k3s does not run", status()["last_trial"]["failure"])
    log(machine.succeed("k3s os status"))

with subtest("a kernel that ends in a panic is tried three times"):
    machine.succeed(f"k3s os update --no-snapshot {SETS.format(2)} 2>&1")
    # In the command line of the kernel image, at the same length.
    machine.succeed("sed -i 's/quiet rd.shell=0/rdinit=\\/nothing  /' /efi/EFI/Linux/k3s_2+3.efi")
    comes_back("2")
    t.assertEqual(status()["slots"][1]["tries_done"], 3)

with subtest("a root with a changed block is refused by dm-verity"):
    machine.succeed(f"k3s os update --no-snapshot {SETS.format(2)} 2>&1")
    machine.succeed("printf x | dd of=/dev/disk/by-partlabel/root-b bs=1 seek=3000 conv=notrunc,fsync 2>&1")
    comes_back("2")

with subtest("a good version whose root has decayed makes room for the other one"):
    machine.succeed(f"k3s os update --no-snapshot {SETS.format(2)} 2>&1")
    # As if it had shown that it is good.
    machine.succeed("mv /efi/EFI/Linux/k3s_2+3.efi /efi/EFI/Linux/k3s_2.efi")
    machine.succeed("printf x | dd of=/dev/disk/by-partlabel/root-b bs=1 seek=3000 conv=notrunc,fsync 2>&1")
    comes_back("2")
