"""Versions that start, and are no good: the machine comes back by itself on the one of before, with its cluster as it was."""

from edge import SET, Edge

nodes = {"kiosk": {"boot": "disk", "updates": ["3", "4"], "trial": "--hold=5s --within=2m",
                   "first_boot": {"config": {"disable": ["coredns", "local-storage", "metrics-server", "traefik"]}}}}

edge = Edge(machine)


def comes_back(version):
    """The machine restarts, tries `version`, and is on 1 again."""
    edge.restarted()
    edge.wait_until_on("1")
    bad = edge.status()["slots"][1]
    t.assertEqual((bad["version"], bad["state"]), (version, "bad"))
    edge.wait_until_ready()
    t.assertEqual((edge.identity(), edge.objects()), before)


start_all()
machine.wait_for_unit("k3s.service")
edge.wait_until_ready()
edge.keep("kept", 1)
before = edge.identity(), edge.objects()

with subtest("a version whose k3s never gets ready is given up, with its reason"):
    machine.succeed(f"k3s os update {SET.format(3)} 2>&1")
    comes_back("3")
    t.assertEqual(edge.status()["last_trial"]["version"], "3")
    t.assertIn("k3s does not run", edge.status()["last_trial"]["failure"])
    log(machine.succeed("k3s os status"))

with subtest("a version that has written the datastore in another form goes with what it wrote"):
    machine.succeed(f"k3s os update {SET.format(4)} 2>&1")
    # Acknowledged after the snapshot: version 1 cannot read it any more.
    edge.keep("lost", 1)
    comes_back("4")
    message = machine.wait_until_succeeds(
        "kubectl get events --field-selector reason=SystemReturned -o jsonpath='{.items[*].message}' | grep 'of before the update'")
    t.assertIn("4 was given up (", message)
    journal = machine.succeed("journalctl -b -o cat -u k3s.service | grep -c '4 was given up (.* of before the update, from '")
    t.assertEqual(journal.strip(), "1")
