"""systemd restarts k3s when it is stuck, and pods do not notice."""

# Emulated processors start few pods at a time.
nodes = {"server": {"role": "server", "watchdog": "2min", "config": {"disable": ["local-storage", "metrics-server", "traefik"]}}}

start_all()
machine.wait_for_unit("k3s.service")
machine.wait_until_succeeds("[ $(ctr tasks ls -q | wc -l) -ge 2 ]")
containers = machine.succeed("ctr tasks ls -q | sort")
pid = machine.get_unit_property("k3s.service", "MainPID")

with subtest("a process that is stopped is ended"):
    machine.succeed(f"kill -STOP {pid}")
    machine.wait_until_succeeds("journalctl -u k3s.service | grep 'Watchdog timeout'")
    machine.wait_until_succeeds(f"pid=$(systemctl show -P MainPID k3s.service); [ $pid != 0 ] && [ $pid != {pid} ]")

with subtest("the next one finds the same containers"):
    machine.wait_for_unit("k3s.service")
    t.assertEqual(machine.succeed("ctr tasks ls -q | sort"), containers)
