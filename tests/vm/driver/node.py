"""What a test says of one machine, and the credentials by which systemd learns it (systemd.system-credentials(7))."""

import dataclasses
import json
import os
import pathlib

TREE = pathlib.Path(__file__).resolve().parents[3]
UNITS = {"server": "k3s.service", "agent": "k3s-agent.service"}
ARCHIVES = "/var/lib/rancher/k3s/agent/images"
# Where the image mounts the disk with the package and with archives for tests.
DIST, TEST_ARCHIVES = "/opt/k3s", "/opt/k3s/test/images"


class UnknownSetting(Exception):
    """A node has a setting that has no effect."""


@dataclasses.dataclass
class Node:
    """A machine. `number` is its place among the test's sorted names, from 1, as NixOS numbers them."""

    name: str
    number: int
    memory: int = 2048
    cores: int = 2
    # "server" or "agent": the unit of that role runs, from images/systemd.
    role: str | None = None
    # config.yaml; JSON is YAML.
    config: dict = dataclasses.field(default_factory=dict)
    # More units by name; with a role's unit, its text.
    units: dict = dataclasses.field(default_factory=dict)
    # Units that are started at boot, besides the role's.
    wants: list = dataclasses.field(default_factory=list)
    # Texts by path.
    files: dict = dataclasses.field(default_factory=dict)
    # Targets of links by path.
    links: dict = dataclasses.field(default_factory=dict)
    # WatchdogSec= of k3s: a machine that is emulated on a busy host stands still for minutes.
    watchdog: str = "20min"
    # Archives for tests (`target/dist-test`) that the node has.
    archives: list = dataclasses.field(default_factory=lambda: ["demo"])
    # "kernel": the Debian root, started by its kernel. "disk": the edge image, started by firmware, whose own units and files count.
    boot: str = "kernel"
    # Of an edge machine: files of its ESP by name, put there before it is first powered on.
    esp: dict = dataclasses.field(default_factory=dict)
    # Its first-boot file, with the machine's name and address unless it says another.
    first_boot: dict | None = None
    # The versions that it may be updated to.
    updates: list = dataclasses.field(default_factory=list)
    # How a new version is judged: flags of `k3s os good`.
    trial: str = "--hold=10s"

    @classmethod
    def parse(cls, name, given, number):
        known = {field.name for field in dataclasses.fields(cls)} - {"name", "number"}
        if unknown := set(given) - known:
            raise UnknownSetting(f"{name}: {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}")
        node = cls(name=name, number=number, **given)
        if node.first_boot is not None:
            node.esp = {**node.esp, "first-boot.yaml": node.first_boot_file()}
        return node

    def first_boot_file(self):
        network = [{"match": {"mac": self.mac}, "addresses": [f"{self.address}/24"], "gateways": ["192.168.1.254"]}]
        given = {"hostname": self.name, "role": "server", "network": network, **self.first_boot}
        config = {"node-ip": self.address, **given.pop("config", {})}
        lines = [f"{key}: {json.dumps(value)}" for key, value in given.items()]
        lines += ["config:", *(f"  {key}: {json.dumps(value)}" for key, value in config.items())]
        return "\n".join(lines) + "\n"

    @property
    def address(self):
        return address(self.number)

    @property
    def mac(self):
        return f"52:54:00:12:01:{self.number:02x}"

    def credentials(self, names):
        if self.boot == "disk":
            return self.emulation()
        units, wants = dict(self.units), ["driver.service", *self.wants]
        if self.role:
            unit = UNITS[self.role]
            units.setdefault(unit, (TREE / "images/systemd" / unit).read_text())
            wants.append(unit)
        files = {"/etc/hosts": "".join(f"{at} {name}\n" for at, name in self.hosts(names)), **self.files}
        if self.role:
            # As the driver of NixOS does with its nodes' own network.
            config = {"node-ip": self.address, **self.config}
            files.setdefault("/etc/rancher/k3s/config.yaml", json.dumps(config, indent=2) + "\n")
        return {
            "system.hostname": self.name,
            # As NixOS names a test's network.
            "network.link.10-test": f"[Match]\nMACAddress={self.mac}\n[Link]\nName=eth1\n",
            "network.network.10-test": f"[Match]\nMACAddress={self.mac}\nKind=!*\n[Network]\nAddress={self.address}/24\n"
                                       "Gateway=192.168.1.254\n[Link]\nRequiredForOnline=yes\n",
            "tmpfiles.extra": "".join(self.tmpfiles(files)),
            "systemd.unit-dropin.multi-user.target~test": f"[Unit]\nWants={' '.join(wants)}\n",
            **{f"systemd.unit-dropin.{path.parent.stem}~{path.stem}": path.read_text()
               for path in sorted((TREE / "images/systemd").glob("*.d/*.conf"))},
            **self.emulation(),
            **{f"systemd.extra-unit.{name}": text for name, text in units.items()},
        }

    def emulation(self):
        patience = {f"systemd.unit-dropin.{unit}~emulation": f"[Service]\nWatchdogSec={self.watchdog}\n" for unit in UNITS.values()}
        if self.boot != "disk":
            return patience
        return patience | {
            "systemd.unit-dropin.k3s-os-good.service~test": f"[Service]\nExecStart=\nExecStart=/usr/bin/k3s os good {self.trial}\n"}

    def hosts(self, names):
        yield "127.0.0.1", "localhost"
        yield "::1", "localhost"
        for number, name in enumerate(names, start=1):
            yield address(number), name

    def tmpfiles(self, files):
        """Lines of tmpfiles.d(5)."""
        for path in [*files, *self.links]:
            yield f"d {os.path.dirname(path)} 0755\n"
        for path, text in files.items():
            escaped = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace("%", "%%")
            yield f"f+ {path} 0644 root root - {escaped}\n"
        for path, target in self.links.items():
            yield f"L+ {path} - - - - {target}\n"
        if self.role:
            yield f"d {ARCHIVES} 0700\n"
            for name in self.archives:
                yield f"C {ARCHIVES}/{name}.tar 0600 - - - {TEST_ARCHIVES}/{name}.tar\n"


def address(number):
    return f"192.168.1.{number}"
