"""A QEMU process: a machine that is told who it is by SMBIOS credentials, and commanded over a virtio serial port."""

import base64
import itertools
import json
import os
import pathlib
import socket
import subprocess
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent

AGENT_UNIT = """[Unit]
Description=Commands from the test driver
DefaultDependencies=no
After=local-fs.target systemd-tmpfiles-setup.service
# An initrd with systemd takes credentials, too.
ConditionPathExists=!/etc/initrd-release
StartLimitIntervalSec=0
[Service]
ImportCredential=driver.agent
ExecStart=/usr/bin/env bash %d/driver.agent
Restart=always
RestartSec=200ms
KillMode=process
OOMScoreAdjust=-1000
"""

# Machines meet in a multicast group on loopback: nothing leaves this host.
NETWORK = "socket,id=net,mcast=230.77.0.1:{port},localaddr=127.0.0.1"


class MachineEnded(Exception):
    """The machine is gone: it was powered off, or QEMU ended."""


class Qemu:
    def __init__(self, name, directory, boot, mac, *, memory, cores, credentials, network_port):
        self.name, self.dir = name, pathlib.Path(directory)
        self.process = None
        self.started_at = None
        self._ids = itertools.count(1)
        self._answers = {}
        self._answered = threading.Condition()
        self._reader = None
        self.dir.mkdir(parents=True, exist_ok=True)
        self._args = [
            "qemu-system-x86_64", "-name", name, "-machine", "q35,usb=off", "-display", "none", "-nodefaults",
            "-no-user-config", *(() if boot.reboots else ("-no-reboot",)),
            # A plain model: with QEMU 7.2 emulation of "max" stops in current kernels.
            "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "Nehalem", "-smp", str(cores), "-m", str(memory),
            "-chardev", f"socket,id=console,path={self.dir}/console.sock,server=on,wait=off,logfile={self.dir}/console.log",
            "-serial", "chardev:console",
            "-chardev", f"socket,id=driver,path={self.dir}/driver.sock,server=on,wait=off",
            "-chardev", f"socket,id=qmp,path={self.dir}/qmp.sock,server=on,wait=off", "-mon", "chardev=qmp,mode=control",
            "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
            "-device", "virtserialport,chardev=driver,name=driver",
            "-netdev", NETWORK.format(port=network_port), "-device", f"virtio-net-pci,id=nic,netdev=net,mac={mac}",
            *boot.arguments(self.dir),
        ]
        own = {
            "driver.agent": (HERE / "guest.sh").read_text(),
            "systemd.extra-unit.driver.service": AGENT_UNIT,
            "systemd.unit-dropin.sysinit.target~driver": "[Unit]\nWants=driver.service\n",
            # A way in by the console's socket when all else fails.
            "agetty.autologin": "root",
            "login.noauth": "yes",
            "firstboot.locale": "C.UTF-8",
        }
        for key, value in (own | credentials).items():
            packed = base64.b64encode(value.encode()).decode()
            self._args += ["-smbios", f"type=11,value=io.systemd.credential.binary:{key}={packed}"]

    def start(self):
        for stale in ("console.sock", "driver.sock", "qmp.sock"):
            (self.dir / stale).unlink(missing_ok=True)
        with open(self.dir / "qemu.log", "ab") as log:
            self.process = subprocess.Popen(self._args, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.started_at = time.monotonic()
        self._reader = None

    @property
    def runs(self):
        return self.process is not None and self.process.poll() is None

    @property
    def processor_time(self):
        """Seconds of the host's processors that the machine has had since power on."""
        if not self.runs:
            return 0.0
        # proc_pid_stat(5), after the name, which may hold anything: utime and stime.
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self):
        """As a power cut."""
        if self.runs:
            self.process.kill()
        if self.process:
            self.process.wait()
        self.process = None

    def wait(self, timeout):
        """Waits for the machine to power itself off."""
        self.process.wait(timeout)
        self.process = None

    def run(self, script, timeout, patience=120):
        """(status, stdout, stderr) of a script in the guest, which may take `timeout` seconds; 124 if it takes longer. A guest that says
        nothing for `patience` seconds more is stuck."""
        self._connect()
        request = f"{os.getpid()}-{next(self._ids)}"
        line = f"\n{request} {timeout:g} {base64.b64encode(script.encode()).decode()}\n"
        self._link.sendall(line.encode())
        # The guest ends it by itself.
        end = time.monotonic() + timeout + patience
        with self._answered:
            while request not in self._answers:
                if not self.runs or not self._reader.is_alive():
                    raise MachineEnded(self.name)
                if time.monotonic() > end:
                    raise TimeoutError(f"{self.name} does not answer")
                self._answered.wait(0.5)
            return self._answers.pop(request)

    def qmp(self, command, **arguments):
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(self.dir / "qmp.sock"))
            stream = link.makefile("rw")
            stream.readline()
            for name, given in (("qmp_capabilities", {}), (command, arguments)):
                stream.write(json.dumps({"execute": name, "arguments": given}) + "\n")
                stream.flush()
                while not any(key in (answer := json.loads(stream.readline())) for key in ("return", "error")):
                    pass
            return answer

    def _connect(self):
        if self._reader is not None:
            return
        end = time.monotonic() + 60
        while True:
            if not self.runs:
                raise MachineEnded(f"{self.name}: {(self.dir / 'qemu.log').read_text()[-2000:]}")
            self._link = socket.socket(socket.AF_UNIX)
            try:
                self._link.connect(str(self.dir / "driver.sock"))
                break
            except OSError:
                self._link.close()
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
        self._reader = threading.Thread(target=self._read, args=(self._link,), daemon=True)
        self._reader.start()

    def _read(self, link):
        """Takes answers until the machine ends."""
        buffer = b""
        while True:
            try:
                got = link.recv(1 << 16)
            except OSError:
                got = b""
            if not got:
                with self._answered:
                    self._answered.notify_all()
                return
            *lines, buffer = (buffer + got).split(b"\n")
            for line in lines:
                try:
                    request, status, *texts = line.decode().split(" ")
                    out, err = (base64.b64decode(text).decode(errors="replace") for text in texts)
                    answer = int(status), out, err
                except ValueError:
                    # A restart has cut it.
                    continue
                with self._answered:
                    self._answers[request] = answer
                    self._answered.notify_all()
