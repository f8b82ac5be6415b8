"""When the host shuts down, pods end first: by hook, signal and grace period, critical ones last, while the network is there."""

# Emulated processors start few pods at a time.
nodes = {"server": {"role": "server", "config": {"disable": ["local-storage", "metrics-server", "traefik"]}}}


def pod(name, script, grace, more=""):
    """A pod that keeps a diary on the host."""
    return f"""
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: kube-system}}
spec:
  terminationGracePeriodSeconds: {grace}
  {more}
  containers:
  - name: main
    image: docker.io/k3s-rs/demo:0.1.0
    command: [sh, -c, "{script}"]
    lifecycle: {{preStop: {{exec: {{command: [sh, -c, 'echo hook >> /diary/{name}']}}}}}}
    volumeMounts: [{{name: diary, mountPath: /diary}}]
  volumes:
  - name: diary
    hostPath: {{path: /var/diary, type: DirectoryOrCreate}}
---
"""


WAITS = "while :; do sleep 1; done"
PODS = (
    pod("behaves", f"trap 'echo ended >> /diary/behaves; cat /proc/uptime >> /diary/order; exit 0' TERM; {WAITS}", 30)
    + pod("stubborn", f"trap 'echo refused >> /diary/stubborn' TERM; {WAITS}", 5)
    + pod("critical", f"trap 'echo critical >> /diary/order; echo ended >> /diary/critical; exit 0' TERM; {WAITS}", 30,
          "priorityClassName: system-node-critical")
)

start_all()
machine.wait_for_unit("k3s.service")
log(f"power off without pods of its own: {machine.shutdown():.1f} s")

machine.start()
machine.wait_for_unit("k3s.service")
machine.wait_until_succeeds("kubectl -n kube-system get serviceaccount default")
machine.succeed(f"kubectl apply -f - <<'END'\n{PODS}\nEND")
machine.wait_until_succeeds("kubectl -n kube-system wait --for=condition=Ready pod/behaves pod/stubborn pod/critical --timeout=60s")
log(f"power off with pods, of which one ignores SIGTERM for its 5 s: {machine.shutdown():.1f} s")

machine.start()
with subtest("every pod had its hook and its signal"):
    t.assertEqual(machine.succeed("cat /var/diary/behaves"), "hook\nended\n")
    t.assertEqual(machine.succeed("cat /var/diary/stubborn"), "hook\nrefused\n")
    t.assertEqual(machine.succeed("cat /var/diary/critical"), "hook\nended\n")

with subtest("the critical pod was the last one"):
    t.assertEqual(machine.succeed("tail -n1 /var/diary/order"), "critical\n")

with subtest("pods ended before the network and the journal"):
    lines = machine.succeed("journalctl --no-pager -b -1 -o cat -t k3s -t systemd | grep -n -e 'The pods have ended' -e 'Stopped.*Network Configuration'")
    log(lines)
    t.assertIn("The pods have ended", lines.splitlines()[0])

with subtest("they run again"):
    machine.wait_for_unit("k3s.service")
    machine.wait_until_succeeds("kubectl -n kube-system wait --for=condition=Ready pod/behaves pod/critical --timeout=60s")
