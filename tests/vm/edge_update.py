"""Updates of the edge image: what is not for this machine is refused, a good version stays, and the way back is one command."""

from edge import FAILED, SET, Edge

nodes = {"kiosk": {"boot": "disk", "updates": ["2"], "trial": "--hold=10s",
                   "first_boot": {"config": {"disable": ["coredns", "local-storage", "metrics-server", "traefik"]}}}}

SET = SET.format(2)

edge = Edge(machine)
start_all()
machine.wait_for_unit("k3s.service")
edge.wait_until_ready()
edge.keep("kept", 1)
before = edge.identity(), edge.objects()

with subtest("a new machine has one version, which is good"):
    t.assertEqual(edge.slots(), [("a", "1", "good", True), ("b", None, None, False)])
    t.assertEqual((edge.status()["root"], edge.status()["next"]), ("verified", "1"))
    machine.fail("k3s os rollback")

with subtest("what was changed or cut is refused, and nothing counts"):
    machine.succeed(f"head -c 3000000 {SET} > /var/cut; head -c 3000000 {SET} | sed 's/\"version\":\"2\"/\"version\":\"9\"/' > /var/changed; echo no > /var/other")
    for file, sentence in [("cut", "cannot be read to its end"), ("changed", "signature does not fit"), ("other", "it is no set for updates")]:
        t.assertIn(sentence, edge.refused(f"k3s os update /var/{file}")[1], file)
    machine.succeed("rm /var/cut /var/changed /var/other")
    t.assertEqual(edge.status()["next"], "1")

with subtest("an update is written beside what runs, with a snapshot of before"):
    log(machine.succeed(f"time k3s os update {SET} 2>&1"))
    t.assertEqual(edge.slots(), [("a", "1", "good", True), ("b", "2", "trial", False)])
    t.assertEqual(edge.status()["next"], "2")
    t.assertIn("before-update-", machine.succeed("k3s snapshot ls"))

with subtest("the new version runs, shows that it is good, and is the same machine"):
    edge.restarted()
    t.assertEqual(edge.version(), "2")
    machine.wait_until_succeeds("test -e /efi/EFI/Linux/k3s_2.efi")
    t.assertEqual(edge.slots(), [("b", "2", "good", True), ("a", "1", "good", False)])
    t.assertEqual(edge.status()["last_trial"], {"version": "2", "failure": None})
    t.assertEqual((edge.identity(), edge.objects()), before)
    t.assertEqual(machine.succeed(FAILED), "")
    machine.succeed("veritysetup status root | grep -w verified")

with subtest("a version that is not newer is refused"):
    code, said = edge.refused(f"k3s os update {SET}")
    t.assertEqual(code, 65)
    t.assertIn("not newer than 2", said)

with subtest("a version that could not read the data is refused before the restart"):
    writer = "/var/lib/k3s-os/data-writer.json"
    machine.succeed(f"cp {writer} /run/writer; sed -i 's/\"format\":1/\"format\":2/' {writer}")
    code, said = edge.refused("k3s os rollback --reboot")
    t.assertEqual(code, 65)
    t.assertIn("cannot read it; --with-data brings back the snapshot", said)
    t.assertEqual(edge.status()["next"], "2")
    machine.succeed(f"cp /run/writer {writer}")

with subtest("one command drains the node and goes back"):
    log(edge.restarted("k3s os rollback --reboot"))
    t.assertEqual(edge.version(), "1")
    machine.wait_until_succeeds("test -e /efi/EFI/Linux/k3s_1.efi")
    t.assertEqual(edge.slots(), [("a", "1", "good", True), ("b", "2", "bad", False)])
    t.assertEqual((edge.identity(), edge.objects()), before)
    t.assertEqual(machine.succeed("kubectl get node kiosk -o jsonpath='{.spec.unschedulable}'"), "")
