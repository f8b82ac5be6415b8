"""The edge image as it is flashed: from power on to a pod, on a root that is verified and read-only, and the same machine after a power cut."""

nodes = {"machine": {"boot": "disk", "esp": {"first-boot.yaml": """
hostname: kiosk-7
role: server
network:
- match: {mac: "52:54:00:12:01:01"}
  addresses: [192.168.1.1/24]
  gateways: [192.168.1.254]
config:
  node-ip: 192.168.1.1
  disable: [local-storage, metrics-server, traefik]
"""}}}

IS_READY = "kubectl wait --for=condition=Ready node/kiosk-7 --timeout=30s"
FAILED = "systemctl --failed --no-legend --plain"

start_all()
machine.connect()

with subtest("the root is verified and read-only, and the data partition fills the disk"):
    machine.succeed("veritysetup status root | grep -w verified")
    machine.succeed("findmnt -n -o OPTIONS / | grep -w ro")
    machine.fail("touch /usr/x")
    machine.fail("touch /etc/x")
    size = int(machine.succeed("lsblk -bno SIZE /dev/disk/by-partlabel/data"))
    t.assertGreater(size, 4 << 30)

with subtest("the node is ready"):
    machine.wait_for_unit("k3s.service")
    machine.wait_until_succeeds(IS_READY)

with subtest("a pod runs"):
    machine.wait_until_succeeds("kubectl -n kube-system wait --for=condition=Available deployment/coredns --timeout=30s")

with subtest("nothing has failed, nobody can log in, and there is no package manager"):
    t.assertEqual(machine.succeed(FAILED), "")
    t.assertNotIn("getty", machine.succeed("systemctl list-units --plain --no-legend 'getty@*' 'serial-getty@*'"))
    machine.fail("command -v apt-get dpkg perl")
    log(machine.succeed("systemd-analyze time; df -h / /var /efi; head -3 /proc/meminfo"))

with subtest("the first-boot file is taken, and gone"):
    t.assertEqual(machine.succeed("hostname").strip(), "kiosk-7")
    machine.fail("test -e /efi/first-boot.yaml")
    t.assertIn("was taken: this machine is kiosk-7, role server.", machine.succeed("cat /efi/status.txt"))

with subtest("after a power cut it is the same machine"):
    same = "cat /etc/machine-id /etc/rancher/node/password; kubectl get node kiosk-7 -o jsonpath='{.metadata.uid}'"
    before = machine.succeed(same)
    machine.crash()
    machine.start()
    machine.wait_for_unit("k3s.service")
    machine.wait_until_succeeds(IS_READY)
    t.assertEqual(machine.succeed(same), before)
    t.assertEqual(machine.succeed(FAILED), "")
