"""The journal has an identifier and a priority for every component, and fields for our own lines."""

import json

# Emulated processors start few pods at a time.
nodes = {"server": {"role": "server", "config": {"disable": ["local-storage", "metrics-server", "traefik"]}}}


def entries(match):
    lines = machine.succeed(f"journalctl --no-pager -o json {match}").splitlines()
    return [json.loads(line) for line in lines]


start_all()
machine.wait_for_unit("k3s.service")

with subtest("our own lines have priorities and fields, and no time of their own"):
    own = entries("-t k3s")
    log(f"{len(own)} lines, by priority: { {p: sum(e['PRIORITY'] == p for e in own) for p in '34567'} }")
    started = [entry for entry in own if entry["MESSAGE"].startswith("Started the component.")]
    t.assertIn("kubelet", {entry.get("K3S_COMPONENT") for entry in started})
    for entry in own:
        t.assertEqual(entry["_SYSTEMD_UNIT"], "k3s.service")
        t.assertNotRegex(entry["MESSAGE"], r"^\d{4}-\d\d-\d\dT")

with subtest("a warning is one"):
    machine.succeed("kill -9 $(pgrep -x kube-scheduler)")
    machine.wait_until_succeeds("journalctl -t k3s -p warning K3S_COMPONENT=kube-scheduler | grep 'is started again'")

with subtest("components have streams of their own"):
    for component in ["containerd", "kubelet", "kube-apiserver", "kube-proxy"]:
        lines = entries(f"-n 200 -t {component}")
        t.assertTrue(lines, component)
        t.assertEqual({line["_SYSTEMD_UNIT"] for line in lines}, {"k3s.service"})
    t.assertTrue(entries("-t kubelet -p warning -n 1"), "kubelet warns of something at each start")

with subtest("a start that fails says so with the priority of an error"):
    machine.succeed("systemctl stop k3s.service", timeout=300)
    machine.succeed("mkdir -p /etc/rancher/k3s/config.yaml.d; echo 'node-taint: gpu' > /etc/rancher/k3s/config.yaml.d/wrong.yaml")
    machine.fail("systemctl start k3s.service")
    machine.succeed("journalctl -t k3s -p err | grep 'is not a taint'")
