"""The power goes at random moments of an update, while the cluster is written to: what ran starts again, or what replaced it, and every
write that was answered is there."""

from edge import SET, Edge

nodes = {"kiosk": {"boot": "disk", "updates": ["2"], "trial": "--hold=1s",
                   "first_boot": {"config": {"disable": ["coredns", "local-storage", "metrics-server", "traefik"]}}}}

import os
import random
import threading
import time

SET = SET.format(2)
edge = Edge(machine)
CUTS, CUTS_WITH_WRITES = int(os.environ.get("CUTS", 17)), 3
# Longer than an update takes here.
LATEST = 75
SEED = int(os.environ.get("SEED", time.time()))


def write_until_it_ends(answered):
    """Each write that the API has answered is known here, outside of the machine."""
    while True:
        number = len(answered) + 1
        try:
            code, _, _ = machine.qemu.run(f"kubectl create configmap write-{generation}-{number} --from-literal=n={number}", 60)
        except Exception:
            return
        if code == 0:
            answered.append(f"write-{generation}-{number}")


def update_and_cut(after):
    """Starts an update, and cuts the power `after` seconds later; the update may have ended by then."""
    machine.succeed(f"nohup k3s os update --no-snapshot {SET} > /run/update.log 2>&1 &")
    time.sleep(after)
    log(f"the power goes {after:.1f} s into an update: {machine.execute('tail -n 1 /run/update.log')[1].strip()}")
    machine.crash()


def start_again():
    """Whatever runs is whole. The next update needs version 1: 2 is taken away where it came to its end."""
    machine.start()
    machine.connect()
    status = edge.status()
    versions.append(status["version"])
    t.assertEqual(status["root"], "verified")
    if status["version"] == "2":
        machine.succeed("rm /efi/EFI/Linux/k3s_2*; sync")
        machine.crash()
        machine.start()
        machine.connect()
        t.assertEqual(edge.version(), "1")


def require_writes():
    there = machine.succeed("kubectl get configmaps -o name").split()
    t.assertEqual([name for name in answered if f"configmap/{name}" not in there], [], f"of {len(answered)} writes")


log(f"SEED={SEED}")
random.seed(SEED)
start_all()
machine.wait_for_unit("k3s.service")
answered, versions = [], []

with subtest("cuts while the cluster is written to"):
    for generation in range(CUTS_WITH_WRITES):
        machine.wait_until_succeeds("kubectl get --raw /readyz")
        writer = threading.Thread(target=write_until_it_ends, args=(written := [],), daemon=True)
        writer.start()
        update_and_cut(random.uniform(2, LATEST))
        writer.join(120)
        answered += written
        start_again()
        machine.wait_until_succeeds("kubectl get --raw /readyz")
        require_writes()
        log(f"{len(answered)} writes were answered, and all are there")

with subtest("cuts at any moment"):
    for _ in range(CUTS):
        update_and_cut(random.uniform(1, LATEST))
        start_again()
    log(f"after the cuts these versions ran: {versions}")

with subtest("an update after all of them"):
    machine.wait_for_unit("k3s.service")
    machine.succeed(f"k3s os update {SET}")
    edge.restarted()
    machine.wait_until_succeeds("test -e /efi/EFI/Linux/k3s_2.efi")
    t.assertEqual(edge.version(), "2")
    require_writes()
