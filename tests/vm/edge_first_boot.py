"""First-boot files: none and a wrong one are said where they can be read, and change nothing; a right one counts at the next start."""

from edge import FAILED

nodes = {
    "empty": {"boot": "disk", "memory": 1024},
    "wrong": {"boot": "disk", "memory": 1024, "esp": {"first-boot.yaml": "role: server\nconfig:\n  disble: traefik\n"}},
}

STATUS = "cat /efi/status.txt"
RUNNING = "systemctl list-units --plain --no-legend --state=active,activating k3s.service k3s-agent.service"

with subtest("without a file a machine waits for one"):
    empty.wait_for_unit("multi-user.target")
    t.assertIn("There is no first-boot.yaml, so nothing runs", empty.succeed(STATUS))
    t.assertEqual(empty.succeed(RUNNING), "")
    t.assertEqual(empty.succeed(FAILED), "")
    empty.shutdown()

with subtest("a wrong file is named by its line on the console and on the ESP"):
    wrong.wait_for_unit("multi-user.target")
    sentence = "first-boot.yaml line 3: `disble` is not a key; use disable if that is meant"
    t.assertIn(sentence, wrong.succeed(STATUS))
    t.assertIn(sentence, wrong.get_console_log())
    t.assertEqual(wrong.succeed(RUNNING), "")
    t.assertIn("k3s-os-configure.service", wrong.succeed(FAILED))

with subtest("corrected, it counts, and its secrets are nowhere on the ESP"):
    wrong.succeed("printf 'role: agent\nhostname: kiosk-8\nconfig:\n  server: https://192.168.1.1:6443\n  token: first-boot-secret\n' > /efi/first-boot.yaml; sync")
    wrong.reboot()
    wrong.wait_until_succeeds("grep 'was taken: this machine is kiosk-8, role agent' /efi/status.txt")
    t.assertEqual(wrong.succeed("hostname").strip(), "kiosk-8")
    wrong.fail("test -e /efi/first-boot.yaml")
    wrong.fail("grep -c first-boot-secret /dev/disk/by-partlabel/esp")
    wrong.succeed("grep first-boot-secret /etc/rancher/k3s/config.yaml")
    wrong.wait_until_succeeds("systemctl is-active k3s-agent.service || systemctl show -P ActiveState k3s-agent.service | grep activating")
