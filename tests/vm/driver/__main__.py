"""Runs one test on virtual machines: python3 tests/vm/driver (--image FOLDER --dist DISK | --edge DISK --firmware FOLDER) --state FOLDER TEST

TEST is a Python file whose first statement is `nodes = {…}`, or a JSON document {"name", "nodes", "testScript"}: what a NixOS test
evaluates to. README.md beside this folder says what a testScript may use, and what stands in for NixOS.
"""

import argparse
import ast
import contextlib
import json
import pathlib
import signal
import sys
import threading
import time
import unittest

from boot import DiskBoot, KernelBoot
from machine import Machine, RequestedAssertionFailed, retry
from node import Node
from qemu import MachineEnded, Qemu


class Assertions(unittest.TestCase):
    failureException = RequestedAssertionFailed


class Log:
    """Lines with the seconds since the start."""

    def __init__(self):
        self.began = time.monotonic()

    def info(self, line):
        print(f"[{time.monotonic() - self.began:7.1f}] {line}", flush=True)

    warning = error = __call__ = info

    @contextlib.contextmanager
    def nested(self, line):
        self.info(line)
        yield


class Driver:
    def __init__(self, boots, state, nodes):
        self.log = Log()
        self.machines = []
        # Two runs on one host do not see each other.
        port = 20000 + hash(str(state.resolve())) % 20000
        for number, (name, given) in enumerate(sorted(nodes.items()), start=1):
            node = Node.parse(name, given, number)
            qemu = Qemu(name, state / name, boots[node.boot](node), node.mac, memory=node.memory, cores=node.cores,
                        credentials=node.credentials(sorted(nodes)), network_port=port)
            self.machines.append(Machine(name, qemu, self.log))

    @contextlib.contextmanager
    def subtest(self, name):
        self.log(f"subtest: {name}")
        began = time.monotonic()
        try:
            yield
        except BaseException:
            self.log(f"subtest failed: {name}")
            raise
        self.log(f"subtest passed in {time.monotonic() - began:.1f} s: {name}")

    def start_all(self):
        for machine in self.machines:
            machine.start()

    def join_all(self):
        for machine in self.machines:
            machine.wait_for_shutdown()

    @contextlib.contextmanager
    def polling_condition(self, function, seconds_interval=2.0, description=None):
        """Checks `function` beside the block; the block fails if it is false at one time."""
        failed, done = [], threading.Event()

        def poll():
            while not done.wait(seconds_interval):
                if not function():
                    failed.append(description or function.__name__)
                    return

        thread = threading.Thread(target=poll, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        if failed:
            raise RequestedAssertionFailed(f"polling condition failed: {failed[0]}")

    def symbols(self):
        names = {machine.name.replace("-", "_"): machine for machine in self.machines}
        if len(self.machines) == 1:
            names["machine"] = self.machines[0]
        return names | {
            "driver": self, "log": self.log, "machines": self.machines, "start_all": self.start_all,
            "join_all": self.join_all, "subtest": self.subtest, "retry": retry, "t": Assertions(),
            "polling_condition": self.polling_condition, "print": lambda *texts: self.log(" ".join(map(str, texts))),
        }

    def release(self):
        for machine in self.machines:
            machine.qemu.kill()


def load(path):
    """(nodes, source of the script, its name)."""
    text = path.read_text()
    if path.suffix == ".json":
        document = json.loads(text)
        return document["nodes"], document["testScript"], f"{document['name']}.testScript"
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", None) == "nodes":
            return ast.literal_eval(statement.value), text, str(path)
    sys.exit(f"{path} does not begin with nodes = {{…}}")


def main():
    parser = argparse.ArgumentParser(prog="driver")
    parser.add_argument("--image", type=pathlib.Path, help="folder with root.ext4, vmlinuz and initrd")
    parser.add_argument("--dist", type=pathlib.Path)
    parser.add_argument("--edge", type=pathlib.Path, help="disk of an edge machine")
    parser.add_argument("--updates", type=pathlib.Path, help="folder with sets k3s_VERSION.update")
    parser.add_argument("--firmware", type=pathlib.Path)
    parser.add_argument("--state", type=pathlib.Path, required=True)
    parser.add_argument("test", type=pathlib.Path)
    given = parser.parse_args()
    nodes, script, name = load(given.test)
    boots = {
        "kernel": lambda _: KernelBoot(given.image / "root.ext4", given.dist, given.image / "vmlinuz", given.image / "initrd"),
        "disk": lambda node: DiskBoot(given.edge, given.firmware, node.esp,
                                      [given.updates / f"k3s_{version}.update" for version in node.updates]),
    }
    driver = Driver(boots, given.state, nodes)
    # Whoever ends the driver ends its machines.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        exec(compile(script, name, "exec"), driver.symbols())
    except (RequestedAssertionFailed, MachineEnded, TimeoutError) as failed:
        driver.log(f"failed: {type(failed).__name__}: {failed}")
        for machine in driver.machines:
            driver.log(f"{machine.name}: the console is in {machine.qemu.dir}/console.log")
        sys.exit(1)
    finally:
        driver.release()
    driver.log("passed")


if __name__ == "__main__":
    main()
