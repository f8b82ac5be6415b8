"""Two machines that are flashed from one image are one cluster by what their first-boot files say."""

from edge import FAILED

nodes = {
    "kiosk": {"boot": "disk", "memory": 1024,
              "first_boot": {"role": "agent", "config": {"server": "https://192.168.1.2:6443", "token": "written-into-both-files"}}},
    "office": {"boot": "disk",
               "first_boot": {"config": {"token": "written-into-both-files", "disable": ["local-storage", "metrics-server", "traefik"]}}},
}

start_all()

with subtest("both are ready"):
    for name in nodes:
        office.wait_until_succeeds(f"kubectl wait --for=condition=Ready node/{name} --timeout=30s")

with subtest("they are two machines"):
    identity = "cat /etc/machine-id /etc/rancher/node/password"
    t.assertNotEqual(kiosk.succeed(identity), office.succeed(identity))

with subtest("a pod runs on the agent, and the server reads its log"):
    office.succeed("kubectl -n kube-system patch deployment coredns --patch "
                   "'{\"spec\": {\"template\": {\"spec\": {\"nodeSelector\": {\"kubernetes.io/hostname\": \"kiosk\"}}}}}'")
    office.wait_until_succeeds("kubectl -n kube-system rollout status deployment/coredns --timeout=30s")
    office.wait_until_succeeds("kubectl -n kube-system logs deployment/coredns | grep CoreDNS")
    t.assertIn("kiosk", office.succeed("kubectl -n kube-system get pods -l k8s-app=kube-dns -o wide"))

with subtest("no token is left on either ESP, and nothing has failed"):
    for machine in (kiosk, office):
        machine.fail("grep -c written-into-both-files /dev/disk/by-partlabel/esp")
        t.assertEqual(machine.succeed(FAILED), "")
