start_all()
machine.wait_for_unit("k3s")

with subtest("manifests are one folder of links"):
    machine.succeed("test -L /var/lib/rancher/k3s/server/manifests/nixos")
    machine.fail("test -e /var/lib/rancher/k3s/server/manifests/nixos/absent.yaml")
    machine.succeed("grep Namespace /var/lib/rancher/k3s/server/manifests/nixos/foo-namespace.yaml")

with subtest("what is in them is applied"):
    machine.wait_until_succeeds("k3s kubectl get namespace foo")
    machine.wait_until_succeeds("k3s kubectl wait --for=condition=Complete job/hello --timeout=30s")
    t.assertEqual(machine.succeed("k3s kubectl logs job/hello").strip(), "Hello, world!")
