start_all()
machine.wait_for_unit("k3s")

with subtest("images are there without a registry"):
    machine.wait_until_succeeds("k3s ctr images ls -q | grep -x docker.io/k3s-rs/demo:0.1.0")
    machine.succeed("k3s ctr images ls -q | grep k3s-rs/pause", "k3s ctr images ls -q | grep k3s-rs/coredns")

with subtest("pods start from them, and none was pulled"):
    machine.wait_until_succeeds("k3s kubectl get serviceaccount default")
    machine.succeed("k3s kubectl run demo --image=docker.io/k3s-rs/demo:0.1.0 --image-pull-policy=IfNotPresent")
    machine.wait_until_succeeds("k3s kubectl wait --for=condition=Ready pod/demo --timeout=30s")
    t.assertNotIn("Pulling", machine.succeed("k3s kubectl get events -A -o jsonpath='{.items[*].reason}'"))
