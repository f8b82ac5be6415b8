start_all()
machine.wait_for_unit("k3s")
machine.wait_until_succeeds("k3s kubectl get serviceaccount default")

with subtest("a shutdown is delayed for pods"):
    machine.wait_until_succeeds("systemd-inhibit --list --no-pager | grep -E 'shutdown.*(kubelet|k3s)|(kubelet|k3s).*shutdown'")

with subtest("pods end by themselves before the machine is off"):
    machine.succeed(
        "k3s kubectl run polite --image=docker.io/k3s-rs/demo:0.1.0 --image-pull-policy=Never --overrides='"
        '{"spec": {"volumes": [{"name": "host", "hostPath": {"path": "/var/tmp"}}], "containers": [{"name": "polite",'
        ' "image": "docker.io/k3s-rs/demo:0.1.0", "imagePullPolicy": "Never",'
        ' "volumeMounts": [{"name": "host", "mountPath": "/host"}],'
        ' "command": ["sh", "-c", "trap \\"echo ended > /host/polite; exit 0\\" TERM; while true; do sleep 1; done"]}]}}'
        "'"
    )
    machine.wait_until_succeeds("k3s kubectl wait --for=condition=Ready pod/polite --timeout=30s")
    machine.shutdown()
    machine.start()
    machine.wait_for_unit("k3s")
    t.assertEqual(machine.succeed("cat /var/tmp/polite").strip(), "ended")
