"""The edge image as it is flashed: from power on to a pod, on a root that is verified and read-only, and the same machine after a power cut."""

from edge import FAILED, Edge

nodes = {"kiosk": {"boot": "disk", "first_boot": {"config": {"disable": ["local-storage", "metrics-server", "traefik"]}}}}

edge = Edge(machine)
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
    edge.wait_until_ready()

with subtest("a pod runs"):
    machine.wait_until_succeeds("kubectl -n kube-system wait --for=condition=Available deployment/coredns --timeout=30s")

with subtest("nothing has failed, nobody can log in, and there is no package manager"):
    t.assertEqual(machine.succeed(FAILED), "")
    t.assertNotIn("getty", machine.succeed("systemctl list-units --plain --no-legend 'getty@*' 'serial-getty@*'"))
    machine.fail("command -v apt-get dpkg perl")
    log(machine.succeed("systemd-analyze time; df -h / /var /efi; head -3 /proc/meminfo"))

with subtest("the first-boot file is taken, and gone"):
    t.assertEqual(machine.succeed("hostname").strip(), "kiosk")
    machine.fail("test -e /efi/first-boot.yaml")
    t.assertIn("was taken: this machine is kiosk, role server.", machine.succeed("cat /efi/status.txt"))

with subtest("after a power cut it is the same machine"):
    before = edge.identity()
    machine.crash()
    machine.start()
    machine.wait_for_unit("k3s.service")
    edge.wait_until_ready()
    t.assertEqual(edge.identity(), before)
    t.assertEqual(machine.succeed(FAILED), "")
