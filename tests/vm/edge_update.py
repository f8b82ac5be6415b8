"""Updates of the edge image: what is not for this machine is refused, a good version stays, and the way back is one command."""

nodes = {"machine": {"boot": "disk", "updates": ["2"], "trial": "--hold=10s", "esp": {"first-boot.yaml": """
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

SET = "/dev/disk/by-id/virtio-k3s_2.update"
IS_READY = "kubectl wait --for=condition=Ready node/kiosk-7 --timeout=30s"
FAILED = "systemctl --failed --no-legend --plain"
# What an update is not to change.
SAME = "cat /etc/machine-id /etc/rancher/node/password; sha256sum /var/lib/rancher/k3s/server/tls/*.crt; " \
       "kubectl get node kiosk-7 -o jsonpath='{.metadata.uid}'; kubectl get configmap kept -o jsonpath='{.data}'"


def status():
    return json.loads(machine.succeed("k3s os status -o json"))


def slots():
    return [(slot["slot"], slot["version"], slot["state"], slot["running"]) for slot in status()["slots"]]


start_all()
machine.wait_for_unit("k3s.service")
machine.wait_until_succeeds(IS_READY)
machine.succeed("kubectl create configmap kept --from-literal=a=1")
before = machine.succeed(SAME)

with subtest("a new machine has one version, which is good"):
    t.assertEqual(slots(), [("a", "1", "good", True), ("b", None, None, False)])
    t.assertEqual((status()["root"], status()["next"]), ("verified", "1"))
    machine.fail("k3s os rollback")

with subtest("what was changed or cut is refused, and nothing counts"):
    machine.succeed(f"head -c 3000000 {SET} > /var/cut; head -c 3000000 {SET} | sed 's/\"version\":\"2\"/\"version\":\"9\"/' > /var/changed; echo no > /var/other")
    for file, sentence in [("cut", "cannot be read to its end"), ("changed", "signature does not fit"), ("other", "it is no set for updates")]:
        status_code, _ = machine.execute(f"k3s os update /var/{file} 2> /var/said")
        t.assertNotEqual(status_code, 0, file)
        t.assertIn(sentence, machine.succeed("cat /var/said"), file)
    machine.succeed("rm /var/cut /var/changed /var/other")
    t.assertEqual(status()["next"], "1")

with subtest("an update is written beside what runs, with a snapshot of before"):
    log(machine.succeed(f"time k3s os update {SET} 2>&1"))
    t.assertEqual(slots(), [("a", "1", "good", True), ("b", "2", "trial", False)])
    t.assertEqual(status()["next"], "2")
    t.assertIn("before-update-", machine.succeed("k3s snapshot ls"))

with subtest("the new version runs, shows that it is good, and is the same machine"):
    boot = machine.boot_id()
    machine.succeed("systemctl reboot --no-block")
    machine.wait_for_restart(boot)
    t.assertEqual(status()["version"], "2")
    machine.wait_until_succeeds("test -e /efi/EFI/Linux/k3s_2.efi")
    t.assertEqual(slots(), [("b", "2", "good", True), ("a", "1", "good", False)])
    t.assertEqual(status()["last_trial"], {"version": "2", "failure": None})
    t.assertEqual(machine.succeed(SAME), before)
    t.assertEqual(machine.succeed(FAILED), "")
    machine.succeed("veritysetup status root | grep -w verified")

with subtest("a version that is not newer is refused"):
    status_code, _ = machine.execute(f"k3s os update {SET} 2> /run/said")
    t.assertEqual(status_code, 65)
    t.assertIn("not newer than 2", machine.succeed("cat /run/said"))

with subtest("one command drains the node and goes back"):
    boot = machine.boot_id()
    log(machine.succeed("k3s os rollback --reboot 2>&1"))
    machine.wait_for_restart(boot)
    t.assertEqual(status()["version"], "1")
    machine.wait_until_succeeds("test -e /efi/EFI/Linux/k3s_1.efi")
    t.assertEqual(slots(), [("a", "1", "good", True), ("b", "2", "bad", False)])
    t.assertEqual(machine.succeed(SAME), before)
    t.assertEqual(machine.succeed("kubectl get node kiosk-7 -o jsonpath='{.spec.unschedulable}'"), "")
