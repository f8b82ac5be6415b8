"""What a machine starts from: by its kernel from the root of tests, or by firmware from a disk of its own."""

import dataclasses
import pathlib
import subprocess

# On a busy host the kernel finds that its timer is late, and would not boot; disks take longer than systemd has patience.
PATIENT = "no_timer_check systemd.default_device_timeout_sec=900"
# Where the ESP of an edge image begins: its first partition.
ESP_OFFSET = "1M"


@dataclasses.dataclass
class KernelBoot:
    """The Debian root, and the package on a second disk."""

    root: pathlib.Path
    dist: pathlib.Path
    kernel: pathlib.Path
    initrd: pathlib.Path

    # A restart ends QEMU: the driver starts it again.
    reboots = False

    def arguments(self, folder):
        disk = folder / "disk.qcow2"
        disk.unlink(missing_ok=True)
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", self.root.resolve(), disk], check=True)
        return [
            "-drive", f"if=none,id=root,file={disk},format=qcow2,cache=unsafe,discard=unmap",
            "-device", "virtio-blk-pci,drive=root",
            # Several machines read it at a time.
            "-drive", f"if=none,id=dist,file={self.dist},format=raw,readonly=on", "-device", "virtio-blk-pci,drive=dist",
            "-kernel", self.kernel, "-initrd", self.initrd,
            "-append", f"root=/dev/vda rw console=ttyS0 quiet panic=1 systemd.show_status=0 {PATIENT}",
        ]


@dataclasses.dataclass
class DiskBoot:
    """An edge image as it was flashed, on a disk that is larger than it."""

    image: pathlib.Path
    # Folder with the firmware's code and variables.
    firmware: pathlib.Path
    # Texts by their place on the ESP.
    esp: dict
    # Sets for updates, each on a disk of its own: /dev/disk/by-id/virtio-NAME.
    updates: list
    size: int = 6 << 30

    # As firmware does it: a version that does not start is followed by the other one.
    reboots = True

    def arguments(self, folder):
        disk, variables = self.disk(folder), folder / "firmware.fd"
        subprocess.run(["cp", "--sparse=always", self.image, disk], check=True)
        with open(disk, "r+b") as opened:
            opened.truncate(self.size)
        for name, text in self.esp.items():
            subprocess.run(["mcopy", "-i", f"{disk}@@{ESP_OFFSET}", "-", f"::{name}"], input=text.encode(), check=True)
        subprocess.run(["cp", self.firmware / "OVMF_VARS_4M.fd", variables], check=True)
        return [
            "-drive", f"if=pflash,format=raw,readonly=on,file={self.firmware}/OVMF_CODE_4M.fd",
            "-drive", f"if=pflash,format=raw,file={variables}",
            # What the guest has flushed is on the disk after a power cut, and nothing else has to be.
            "-drive", f"if=none,id=root,file={disk},format=raw,cache=writeback", "-device", "virtio-blk-pci,drive=root",
            *(text for number, update in enumerate(self.updates) for text in (
                "-drive", f"if=none,id=update{number},file={update},format=raw,readonly=on",
                "-device", f"virtio-blk-pci,drive=update{number},serial={update.name}")),
            "-smbios", f"type=11,value=io.systemd.stub.kernel-cmdline-extra={PATIENT}",
        ]

    @staticmethod
    def disk(folder):
        return folder / "disk.raw"
