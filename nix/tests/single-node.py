start_all()
machine.wait_for_unit("k3s")

with subtest("the API answers administrators and nobody else"):
    machine.wait_until_succeeds("k3s kubectl get --raw /readyz")
    machine.succeed("k3s kubectl cluster-info")
    machine.fail("setpriv --reuid=65534 --clear-groups k3s kubectl get nodes")

with subtest("the configuration is as it should be"):
    machine.succeed("k3s check-config")
    t.assertIn("ready", machine.succeed("k3s status"))

with subtest("the node is ready"):
    machine.wait_until_succeeds("k3s kubectl wait --for=condition=Ready node --all --timeout=30s")
    machine.wait_until_succeeds("k3s kubectl get serviceaccount default")

with subtest("a pod runs"):
    machine.succeed("k3s kubectl run demo --image=docker.io/k3s-rs/demo:0.1.0 --image-pull-policy=Never")
    machine.wait_until_succeeds("k3s kubectl wait --for=condition=Ready pod/demo --timeout=30s")
    machine.succeed("k3s kubectl exec demo -- wget -O - http://127.0.0.1:8080/ || true")
    machine.succeed("k3s kubectl delete pod demo --grace-period=1")

with subtest("nothing is missing on the host"):
    # What containerd goes without, it says as information.
    machine.fail("journalctl --no-pager -u k3s | grep -v level=info | grep 'not found in .*PATH'")
