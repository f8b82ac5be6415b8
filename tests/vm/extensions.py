"""The package as system extensions: merged, at boot and by hand, k3s runs from them, on an /etc that is read-only."""

# Nothing of the package but its extensions counts: no unit, no archives.
nodes = {"machine": {"files": {
    "/etc/rancher/k3s/config.yaml": '{"node-ip": "192.168.1.1", "disable": ["local-storage", "metrics-server", "traefik"]}\n',
}}}


def wait_for_node():
    machine.wait_until_succeeds("systemctl is-active k3s.service")
    machine.wait_until_succeeds("kubectl wait --for=condition=Ready node/machine --timeout=30s")


def node():
    return machine.succeed("kubectl get node machine -o jsonpath='{.metadata.uid}'")


start_all()
machine.succeed("mkdir -p /var/lib/extensions /var/lib/confexts",
                "ln -s /opt/k3s/test/extensions/*.sysext.raw /var/lib/extensions/",
                "ln -s /opt/k3s/test/extensions/*.confext.raw /var/lib/confexts/",
                # Of tests alone.
                "rm -rf /run/systemd/system/cri-containerd-.scope.d; systemctl daemon-reload",
                "mkdir -p /var/lib/rancher/k3s/agent/images; cp /opt/k3s/test/images/demo.tar /var/lib/rancher/k3s/agent/images/",
                "systemctl enable systemd-sysext.service systemd-confext.service")

with subtest("merged while the machine runs, they start k3s"):
    machine.succeed("systemctl start systemd-sysext.service systemd-confext.service")
    log(machine.succeed("systemd-sysext status --no-pager; systemd-confext status --no-pager"))
    wait_for_node()
    t.assertEqual(machine.succeed("readlink -f /usr/bin/k3s").strip(), "/usr/bin/k3s")
    t.assertEqual(machine.succeed("readlink /proc/$(systemctl show -P MainPID k3s.service)/exe").strip(), "/usr/bin/k3s")
    machine.fail("touch /usr/bin/x")
    machine.fail("touch /etc/x")
    machine.succeed("test -s /var/lib/rancher/node/password", "test -s /etc/rancher/k3s/k3s.yaml")

with subtest("a pod runs"):
    machine.wait_until_succeeds("kubectl get serviceaccount default")
    machine.succeed("kubectl run demo --image=docker.io/k3s-rs/demo:0.1.0 --image-pull-policy=Never")
    machine.wait_until_succeeds("kubectl wait --for=condition=Ready pod/demo --timeout=30s")
    t.assertIn("k3s.service", machine.succeed("systemctl show -P Before \"$(systemctl list-units --plain --no-legend "
                                              "'cri-containerd-*.scope' | head -n1 | cut -d' ' -f1)\""))

with subtest("a stop lasts"):
    # What is upheld would be started at once.
    machine.succeed("systemctl stop k3s.service", "systemctl daemon-reload")
    t.assertEqual(machine.succeed("systemctl list-jobs --no-legend"), "")
    t.assertEqual(machine.get_unit_property("k3s.service", "ActiveState"), "inactive")
    machine.succeed("systemctl start --no-block k3s.service")
    wait_for_node()

before = node()
with subtest("they are merged at boot, and the node is the same one"):
    machine.shutdown()
    machine.start()
    wait_for_node()
    t.assertEqual(node(), before)
    t.assertNotIn("Cannot link the kubeconfig", machine.succeed("journalctl --no-pager -b -t k3s"))
    machine.wait_until_succeeds("kubectl wait --for=condition=Ready pod/demo --timeout=30s")

with subtest("without them nothing of it is there"):
    machine.succeed("k3s stop --all", "systemctl stop etc-rancher-node.mount", "systemctl stop systemd-confext.service systemd-sysext.service")
    t.assertEqual(machine.succeed("systemctl show -P LoadState k3s.service").strip(), "not-found")
