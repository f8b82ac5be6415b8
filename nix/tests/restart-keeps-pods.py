def tasks():
    return machine.succeed("k3s ctr tasks ls -q | sort")


def new_process(old):
    machine.wait_until_succeeds(f"pid=$(systemctl show -P MainPID k3s); [ $pid != 0 ] && [ $pid != {old} ]")
    machine.wait_for_unit("k3s")
    machine.wait_until_succeeds("k3s kubectl get --raw /readyz")


start_all()
machine.wait_for_unit("k3s")
machine.wait_until_succeeds("k3s kubectl get serviceaccount default")
machine.succeed("k3s kubectl run demo --image=docker.io/k3s-rs/demo:0.1.0 --image-pull-policy=Never")
machine.wait_until_succeeds("k3s kubectl wait --for=condition=Ready pod/demo --timeout=30s")
before = tasks()

with subtest("a restart keeps every container"):
    pid = machine.succeed("systemctl show -P MainPID k3s").strip()
    machine.succeed("systemctl restart k3s")
    new_process(pid)
    t.assertEqual(tasks(), before)

with subtest("so does the death of k3s"):
    pid = machine.succeed("systemctl show -P MainPID k3s").strip()
    machine.succeed(f"kill -9 {pid}")
    new_process(pid)
    t.assertEqual(tasks(), before)

with subtest("the pod was not started again"):
    restarts = "k3s kubectl get pod demo -o jsonpath='{.status.containerStatuses[0].restartCount}'"
    t.assertEqual(machine.succeed(restarts).strip(), "0")
