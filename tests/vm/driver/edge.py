"""What tests ask of an edge machine: one whose `first_boot` makes it a node of its own name."""

import json

# Sets for updates, each on a disk of its own.
SET = "/dev/disk/by-id/virtio-k3s_{}.update"
FAILED = "systemctl --failed --no-legend --plain"


class Edge:
    def __init__(self, machine):
        self.machine = machine

    def wait_until_ready(self):
        self.machine.wait_until_succeeds(f"kubectl wait --for=condition=Ready node/{self.machine.name} --timeout=30s")

    def status(self):
        return json.loads(self.machine.succeed("k3s os status -o json"))

    def version(self):
        return self.status()["version"]

    def slots(self):
        return [(slot["slot"], slot["version"], slot["state"], slot["running"]) for slot in self.status()["slots"]]

    def refused(self, command):
        """(exit code, sentence) of a command that fails."""
        code, said = self.machine.execute(f"{command} 2>&1")
        assert code != 0, f"`{command}` was not refused: {said}"
        return code, said

    def restarted(self, command="systemctl reboot --no-block"):
        """Waits until the machine, which `command` restarts, takes commands again; returns what the command said."""
        boot = self.machine.boot_id()
        said = self.machine.succeed(f"sync; {command} 2>&1")
        self.machine.wait_for_restart(boot)
        return said

    def wait_until_on(self, version):
        """Waits until the machine, which restarts by itself as often as it has to, runs `version`."""
        while self.version() != version:
            self.machine.wait_for_restart(self.machine.boot_id())

    def identity(self):
        """What makes it the same machine and node with the same authorities."""
        return self.machine.succeed(
            "cat /etc/machine-id /etc/rancher/node/password; sha256sum /var/lib/rancher/k3s/server/tls/*.crt; "
            f"kubectl get node {self.machine.name} -o jsonpath='{{.metadata.uid}}'")

    def objects(self):
        """Each ConfigMap that the test has made, with its data."""
        maps = json.loads(self.machine.succeed("kubectl get configmaps -l test -o json"))["items"]
        return {map["metadata"]["name"]: map["data"] for map in maps}

    def keep(self, name, value):
        self.machine.succeed(f"kubectl create configmap {name} --from-literal=value={value} && kubectl label configmap {name} test=")

    def events(self, reason):
        return self.machine.succeed(f"kubectl get events --field-selector reason={reason} -o jsonpath='{{.items[*].message}}'")
