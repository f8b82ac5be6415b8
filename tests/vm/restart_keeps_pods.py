"""A restart, and the death, of k3s leaves every container and shim as it is, and systemd starts the unit again.

On cgroup v2 with and without `DelegateSubgroup=`, which systemd before 254 and nixpkgs' unit lack; and with a shim below the unit, where
versions before this test left them.
"""

# Emulated processors start few pods at a time.
nodes = {"server": {"role": "server", "config": {"disable": ["local-storage", "metrics-server", "traefik"]}}}

PODS = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: demo}
spec:
  replicas: 2
  selector: {matchLabels: {app: demo}}
  template:
    metadata: {labels: {app: demo}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: demo
        image: docker.io/k3s-rs/demo:0.1.0
        ports: [{containerPort: 8080}]
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
"""


# Seconds of a restart that ask for a reason.
SLOW = 45


def shims():
    """The shims with the time of their start: a process that is the same has both."""
    return machine.succeed("for pid in $(pgrep -f containerd-shim-runc-v2 | sort -n); do"
                           " echo $pid $(cut -d' ' -f22 /proc/$pid/stat); done")


def containers():
    return machine.succeed("ctr tasks ls -q | sort")


def wait_for_api():
    machine.wait_for_unit("k3s.service")
    machine.wait_until_succeeds("kubectl get --raw /readyz")


def timeline(since):
    """What systemd and k3s told of the unit since then, with seconds since power on."""
    lines = machine.succeed("journalctl --no-pager -b -o short-monotonic -t k3s -t systemd -u k3s.service | cut -c1-200").splitlines()
    return "\n".join(line for line in lines if line.startswith("[") and float(line[1:].split("]")[0]) >= since)


def restarts_and_keeps_pods(end):
    """Ends the main process by `end`: systemd starts another one, and its containerd finds everything as it was."""
    before = machine.get_unit_property("k3s.service", "MainPID")
    since = float(machine.succeed("cut -d' ' -f1 /proc/uptime"))
    end(before)
    machine.wait_until_succeeds(f"pid=$(systemctl show -P MainPID k3s.service); [ $pid != 0 ] && [ $pid != {before} ]")
    # A new containerd: the old one's socket may be there still.
    machine.wait_until_succeeds("k3s status -o json | jq -e '.components[] | select(.name == \"containerd\") | .state == \"ready\"'")
    if float(machine.succeed("cut -d' ' -f1 /proc/uptime")) - since > SLOW:
        log(timeline(since))
    t.assertEqual((shims(), containers()), known)
    t.assertNotIn("Failed to spawn", machine.succeed("journalctl --no-pager -u k3s.service | tail -n 300"))


def restart(_):
    machine.succeed("systemctl restart --no-block k3s.service")


def kill(pid):
    machine.succeed(f"kill -9 {pid}")


start_all()
wait_for_api()
machine.wait_until_succeeds("kubectl get serviceaccount default")
machine.succeed(f"kubectl apply -f - <<'END'\n{PODS}\nEND")
machine.wait_until_succeeds("kubectl wait --for=condition=Available deployment/demo --timeout=60s")
log(machine.succeed("systemd-cgls --no-pager -l | cut -c1-100 | head -70"))

with subtest("shims are outside of the unit"):
    t.assertEqual(machine.succeed("sort -n /sys/fs/cgroup/k3s-shims/cgroup.procs"),
                  machine.succeed("pgrep -f containerd-shim-runc-v2 | sort -n"))
    t.assertIn("supervisor", machine.succeed("ls /sys/fs/cgroup/system.slice/k3s.service"))

# CoreDNS starts beside the demo.
machine.wait_until_succeeds("kubectl wait --for=condition=Ready pod --all --all-namespaces --timeout=60s")
known = shims(), containers()

for end in [restart, kill]:
    with subtest(f"with DelegateSubgroup=: {end.__name__}"):
        restarts_and_keeps_pods(end)

machine.succeed("mkdir -p /run/systemd/system/k3s.service.d",
                "printf '[Service]\\nDelegateSubgroup=\\n' > /run/systemd/system/k3s.service.d/old.conf",
                "systemctl daemon-reload")
t.assertEqual(machine.get_unit_property("k3s.service", "DelegateSubgroup"), "")

for attempt in range(1, 6):
    for end in [restart, kill]:
        with subtest(f"without DelegateSubgroup=: {end.__name__}, {attempt} of 5"):
            restarts_and_keeps_pods(end)

with subtest("a shim below the unit is moved out at the next stop"):
    leaf = "/sys/fs/cgroup/system.slice/k3s.service/containerd/cgroup.procs"
    machine.succeed(f"head -n1 /sys/fs/cgroup/k3s-shims/cgroup.procs > {leaf}")
    restarts_and_keeps_pods(restart)
    t.assertEqual(machine.succeed("wc -l < /sys/fs/cgroup/k3s-shims/cgroup.procs").strip(),
                  str(len(known[0].splitlines())))

with subtest("the node is ready again, and pods are still kubelet's"):
    wait_for_api()
    machine.succeed("kubectl delete deployment demo --wait", "kubectl wait --for=delete pod -l app=demo --timeout=300s")
