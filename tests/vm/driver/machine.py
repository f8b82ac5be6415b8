"""Machines with the verbs of the NixOS test driver, so that a testScript runs here as it does there."""

import base64
import contextlib
import os
import pathlib
import re
import shlex
import subprocess
import tarfile
import io
import time

from qemu import MachineEnded


# Seconds that anything may take: on a host whose processors others want as well, minutes become quarters of an hour.
PATIENCE = 2700
# How much slower than real machines emulated ones may be: limits that a script gives are meant for real ones.
EMULATION = 10


class RequestedAssertionFailed(Exception):
    """What a test asked for is not so."""


def stretched(timeout):
    """The limit that a script gives, for a machine that is emulated."""
    return min(timeout * EMULATION, PATIENCE)


def retry(function, timeout=PATIENCE):
    """Calls `function` each second until it is true; the last call, at `timeout`, is told that it is the last."""
    timeout = stretched(timeout)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if function(False):
            return
        time.sleep(1)
    if not function(True):
        raise RequestedAssertionFailed(f"action timed out after {timeout} seconds")


class Machine:
    def __init__(self, name, qemu, log):
        self.name, self.qemu, self.log = name, qemu, log
        self.booted = False

    # Power.

    def is_up(self):
        return self.qemu.runs

    def start(self, allow_reboot=False):
        """Powers it on; does not wait. `allow_reboot` is the default here."""
        if not self.qemu.runs:
            self.log(f"{self.name}: starts")
            self.qemu.start()
            self.booted = False

    def connect(self, timeout=PATIENCE):
        """Waits until the guest takes commands."""
        self.start()
        if not self.booted:
            self.qemu.run("true", timeout)
            self.booted = True
            self.log(f"{self.name}: answers {time.monotonic() - self.qemu.started_at:.1f} s after power on")

    def shutdown(self, timeout=PATIENCE):
        """Asks systemd to power off, and waits until it is; returns the seconds that it took."""
        if not self.qemu.runs:
            return 0.0
        began = time.monotonic()
        try:
            self._run("systemctl poweroff --no-block", 60)
        except MachineEnded:
            pass
        self.wait_for_shutdown(timeout)
        took = time.monotonic() - began
        self.log(f"{self.name}: powered off in {took:.1f} s")
        return took

    def wait_for_shutdown(self, timeout=PATIENCE):
        try:
            self.qemu.wait(stretched(timeout))
        except subprocess.TimeoutExpired as expired:
            raise RequestedAssertionFailed(f"{self.name} did not power off within {stretched(timeout)} s") from expired
        self.booted = False

    def crash(self):
        """A power cut."""
        self.log(f"{self.name}: loses power")
        self.qemu.kill()
        self.booted = False

    def reboot(self):
        self.shutdown()
        self.start()

    def wait_for_restart(self, boot, timeout=PATIENCE):
        """Waits until the guest, whose `boot_id` was `boot`, has restarted by itself and takes commands."""
        began = time.monotonic()

        def restarted(_):
            try:
                status, out, _ = self.qemu.run("cat /proc/sys/kernel/random/boot_id", 20, patience=10)
            except TimeoutError:
                # Asked while it was down.
                return False
            return status == 0 and out.strip() not in ("", boot)

        retry(restarted, timeout)
        self.log(f"{self.name}: restarted and answers after {time.monotonic() - began:.1f} s")

    def boot_id(self):
        return self.succeed("cat /proc/sys/kernel/random/boot_id").strip()

    # Commands.

    def execute(self, command, check_return=True, check_output=True, timeout=PATIENCE):
        """(status, stdout) of a root shell with `set -euo pipefail`."""
        status, out, _ = self._execute(command, timeout)
        return (status if check_return else -1), (out if check_output else "")

    def succeed(self, *commands, timeout=None):
        outs = ""
        for command in commands:
            status, out, err = self._execute(command, timeout or PATIENCE)
            if status != 0:
                raise RequestedAssertionFailed(
                    f"{self.name}: command `{command}` failed (exit code {status})\n{out}{err}")
            outs += out
        return outs

    def fail(self, *commands, timeout=None):
        outs = ""
        for command in commands:
            status, out, _ = self._execute(command, timeout or PATIENCE)
            if status == 0:
                raise RequestedAssertionFailed(f"{self.name}: command `{command}` unexpectedly succeeded\n{out}")
            outs += out
        return outs

    def wait_until_succeeds(self, command, timeout=PATIENCE):
        return self._until(command, timeout, lambda status: status == 0, "succeed")

    def wait_until_fails(self, command, timeout=PATIENCE):
        return self._until(command, timeout, lambda status: status != 0, "fail")

    def _until(self, command, timeout, wanted, what):
        last = (0, "", "")

        def attempt(is_last):
            nonlocal last
            last = self._execute(command, min(timeout, 30))
            if is_last and not wanted(last[0]):
                raise RequestedAssertionFailed(
                    f"{self.name}: `{command}` did not {what} within {stretched(timeout)} s\n{last[1]}{last[2]}")
            return wanted(last[0])

        with self._timed(f"`{command}`"):
            retry(attempt, timeout)
        return last[1]

    @contextlib.contextmanager
    def _timed(self, what):
        """Tells how long `what` was waited for, how much of that the machine ran, and how long ago it was powered on."""
        self.connect()
        began, ran = time.monotonic(), self.qemu.processor_time
        yield
        now, ran = time.monotonic(), self.qemu.processor_time - ran
        if now - began >= 2:
            self.log(f"{self.name}: waited {now - began:.1f} s for {what}, with {ran:.1f} s of processor time: "
                     f"{now - self.qemu.started_at:.1f} s after power on")

    def _execute(self, command, timeout):
        self.connect()
        return self._run(f"set -euo pipefail; {command}", stretched(timeout))

    def _run(self, script, timeout):
        try:
            return self.qemu.run(script, timeout)
        except MachineEnded:
            self.booted = False
            raise

    # systemd.

    def systemctl(self, query, user=None):
        if user is not None:
            query = f"--user --machine={shlex.quote(user)}@.host {query}"
        return self.execute(f"systemctl {query}")

    def get_unit_info(self, unit, user=None):
        status, out = self.systemctl(f'--no-pager show "{unit}"', user)
        if status != 0:
            raise RequestedAssertionFailed(f'{self.name}: unit "{unit}" cannot be shown')
        return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)

    def get_unit_property(self, unit, property, user=None):
        return self.succeed(f'systemctl --no-pager show "{unit}" --property={property} --value').rstrip("\n")

    def require_unit_state(self, unit, require_state="active"):
        state = self.get_unit_property(unit, "ActiveState")
        if state != require_state:
            raise RequestedAssertionFailed(f'{self.name}: unit "{unit}" is {state}, not {require_state}')

    def wait_for_unit(self, unit, user=None, timeout=PATIENCE):
        def is_active(_):
            state = self.get_unit_property(unit, "ActiveState", user)
            if state == "failed":
                raise RequestedAssertionFailed(f'{self.name}: unit "{unit}" reached state "failed"\n{self._journal(unit)}')
            if state == "inactive" and "No jobs" in self.execute("systemctl list-jobs --full 2>&1")[1]:
                # It may have become active between the two looks.
                if self.get_unit_property(unit, "ActiveState", user) == "inactive":
                    raise RequestedAssertionFailed(f'{self.name}: unit "{unit}" is inactive and there are no pending jobs')
            return state == "active"

        with self._timed(unit):
            retry(is_active, timeout)

    def start_job(self, job, user=None):
        return self.systemctl(f"start {job}", user)

    def stop_job(self, job, user=None):
        return self.systemctl(f"stop {job}", user)

    def _journal(self, unit):
        return self.execute(f"journalctl --no-pager -n 30 -u {shlex.quote(unit)}")[1]

    # Waiting for other things.

    def wait_for_file(self, filename, timeout=PATIENCE):
        self.wait_until_succeeds(f"test -e {shlex.quote(filename)}", timeout)

    def wait_for_open_port(self, port, addr="localhost", timeout=PATIENCE):
        self.wait_until_succeeds(f"nc -z {addr} {port}", timeout)

    def wait_for_closed_port(self, port, addr="localhost", timeout=PATIENCE):
        self.wait_until_fails(f"nc -z {addr} {port}", timeout)

    def wait_for_open_unix_socket(self, addr, timeout=PATIENCE):
        self.wait_until_succeeds(f"nc -z -U {shlex.quote(addr)}", timeout)

    def wait_for_console_text(self, regex, timeout=PATIENCE):
        self.start()
        retry(lambda _: re.search(regex, self.get_console_log()) is not None, timeout)

    def get_console_log(self):
        log = self.qemu.dir / "console.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def sleep(self, secs):
        self.succeed(f"sleep {secs}")

    # Files. The port is read byte by byte: what is large goes into the image.

    def copy_from_host(self, source, target):
        source = pathlib.Path(source)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            archive.add(source, arcname=pathlib.PurePath(target).name)
        text = base64.b64encode(packed.getvalue()).decode()
        folder = shlex.quote(os.path.dirname(target) or "/")
        self.succeed(f"rm -f /run/driver.copy; mkdir -p {folder}")
        for start in range(0, len(text), 32768):
            self.succeed(f"printf %s {text[start:start + 32768]} >> /run/driver.copy")
        self.succeed(f"base64 -d < /run/driver.copy | tar -xz -C {folder}; rm /run/driver.copy")

    def copy_from_machine(self, source, target_dir=""):
        folder, name = os.path.split(source.rstrip("/"))
        text = self.succeed(f"tar -cz -C {shlex.quote(folder or '/')} {shlex.quote(name)} | base64 -w0")
        target = self.qemu.dir / "out" / target_dir
        target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(base64.b64decode(text)), mode="r:gz") as archive:
            archive.extractall(target, filter="data")

    # The network.

    def block(self):
        """Pulls the cable."""
        self.qemu.qmp("set_link", name="nic", up=False)

    def unblock(self):
        self.qemu.qmp("set_link", name="nic", up=True)
