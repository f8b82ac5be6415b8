"""Each component has its cgroup, comes back alone when it dies, and nothing of the node is left after `k3s stop --all`."""

import json

# Emulated processors start few pods at a time.
nodes = {"server": {"role": "server", "config": {"disable": ["local-storage", "metrics-server", "traefik"]}}}

# What a node makes on its host, by a command that lists it; what the host has of its own is there before.
KINDS = {
    "processes": "ps -eo args= | grep -e '[k]3s' -e '[c]ontainerd' -e '[k]ube' -e '[/]pause' -e '[h]ttpd' || true",
    "mounts": "cut -d' ' -f5 /proc/self/mountinfo | sort",
    "network namespaces": "ls /run/netns 2>/dev/null || true",
    "devices": "ip -o link | cut -d: -f2 | sort",
    "rules": "nft list tables",
    "cgroups": "find /sys/fs/cgroup -type d | grep -e kubepods -e k3s -e cri-containerd || true",
}
UNIT = "/sys/fs/cgroup/system.slice/k3s.service"
# MiB of each program.
PSS = f"""
for pid in $(cat {UNIT}/*/cgroup.procs /sys/fs/cgroup/k3s-shims/cgroup.procs); do
    name=$(cat /proc/$pid/comm) && pss=$(grep ^Pss: /proc/$pid/smaps_rollup) || continue  # ended meanwhile, as runc does
    echo $name $pss
done | jq -rRn '[inputs / " " | {{name: .[0], pss: (.[2] | tonumber)}}] | group_by(.name)[] | "\\(.[0].name) \\(map(.pss) | add / 1024 | floor)"'
"""


def left():
    return {kind: machine.succeed(command) for kind, command in KINDS.items()}


def components():
    return {one["name"]: one for one in json.loads(machine.succeed("k3s status -o json"))["components"]}


start_all()
# What the host has without it: its start is called off.
machine.succeed("systemctl stop k3s.service")
machine.wait_for_unit("multi-user.target")
machine.succeed("k3s stop --all", "rm -rf /run/k3s")
before = left()
machine.succeed("systemctl start k3s.service")
machine.wait_until_succeeds("kubectl wait --for=condition=Ready node --all --timeout=30s")
machine.wait_until_succeeds("kubectl get serviceaccount default")
machine.succeed("kubectl run demo --image=docker.io/k3s-rs/demo:0.1.0 --image-pull-policy=Never")
machine.wait_until_succeeds("kubectl wait --for=condition=Ready pod/demo --timeout=30s")

with subtest("each component has a cgroup of its own, with its weight"):
    for name, component in components().items():
        t.assertIn(str(component["pid"]), machine.succeed(f"cat {UNIT}/{name}/cgroup.procs").split(), name)
    weights = machine.succeed(f"cd {UNIT}; grep . */cpu.weight")
    log(weights)
    t.assertIn("kube-apiserver/cpu.weight:200", weights)
    log(machine.succeed("systemd-cgls --no-pager -l | cut -c1-100 | head -60"))

with subtest("what it takes"):
    # Of the unit, and of the shims beside it.
    log(machine.succeed(PSS))

tasks = machine.succeed("ctr tasks ls -q | sort")
for name in sorted(components()):
    with subtest(f"{name} dies and comes back alone"):
        known = components()
        machine.succeed(f"kill -9 {known[name]['pid']}")
        machine.wait_until_succeeds(f"k3s status -o json | jq -e '.components[] | select(.name == \"{name}\") |"
                                    f" .state == \"ready\" and .pid != {known[name]['pid']}'")
        now = components()
        others = [other for other in known if other != name]
        t.assertEqual([now[other]["pid"] for other in others], [known[other]["pid"] for other in others])
        t.assertEqual(machine.succeed("ctr tasks ls -q | sort"), tasks)
        machine.require_unit_state("k3s.service")

with subtest("a stop with all leaves nothing"):
    machine.succeed("k3s stop --all")
    t.assertEqual(machine.get_unit_property("k3s.service", "ActiveState"), "inactive")
    after = left()
    for kind in KINDS:
        t.assertEqual(after[kind], before[kind], kind)
