def pid():
    return machine.succeed("systemctl show -P MainPID k3s").strip()


start_all()
machine.wait_for_unit("k3s")
machine.wait_until_succeeds("k3s kubectl get nodes -l site=one -o name | grep node/")
before = pid()

with subtest("a reload applies labels through the API"):
    machine.succeed("echo 'node-label: [site=two]' > /etc/k3s.yaml", "systemctl reload k3s")
    machine.wait_until_succeeds("k3s kubectl get nodes -l site=two -o name | grep node/")
    t.assertEqual(pid(), before)

with subtest("a bad file is refused, and everything stays as it is"):
    machine.succeed("echo 'node-lable: [site=three]' > /etc/k3s.yaml")
    machine.execute("systemctl reload k3s")
    machine.wait_until_succeeds("journalctl --no-pager -u k3s | grep node-lable")
    machine.wait_for_unit("k3s")
    machine.succeed("k3s kubectl get nodes -l site=two -o name | grep node/")
    t.assertEqual(pid(), before)
