#!/usr/bin/python3
"""Record what libvirt makes of the domain corpus.

For every tests/data/domain/NAME/input.xml this writes, beside it,

    inactive.xml   the definition as libvirt prints it (--inactive --security-info)
    live.xml       the running guest's XML (--security-info), absent where the guest cannot start on a plain machine
    args           the QEMU command line from the guest's log, one argument per line
    env            the environment QEMU got (only for guests that add to it)
    error          where it refuses to define or start the guest: `define` or `start`, the error's code and domain
                   on the first line, then libvirt's words

The daemon behind qemu:///system must be libvirt 11.3 itself and may not hold guests of the same
names; give it a machine (or mount and network namespace) of its own, as root:

    compat/corpus/record.py [NAME...]

What differs from run to run (descriptors, pty numbers, tap names, domain ids) is numbered afresh per guest, so
that a second recording is identical to the first.
"""

import os
import re
import shlex
import stat
import struct
import subprocess
import sys
from pathlib import Path

import libvirt

CORPUS = Path(__file__).resolve().parents[2] / "tests/data/domain"
FILES = Path("/var/tmp/ferrovirt-corpus")
LOG = Path("/var/log/libvirt/qemu")
BRIDGE = "fvcorpus0"


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def make_files():
    """The images the inputs name: a ROM that halts, a kernel header, disks and backing chains."""
    FILES.mkdir(parents=True, exist_ok=True)
    rom = bytearray(65536)
    rom[-16:-12] = bytes([0xFA, 0xF4, 0xEB, 0xFD])  # at the reset vector: cli; hlt; jump back to hlt
    (FILES / "halt.rom").write_bytes(rom)

    kernel = bytearray(8192)
    kernel[0x1F1] = 1
    kernel[0x1FE:0x200] = b"\x55\xaa"
    kernel[0x202:0x206] = b"HdrS"
    kernel[0x206:0x208] = struct.pack("<H", 0x20C)
    kernel[0x22C:0x230] = struct.pack("<I", 0x7FFFFFFF)  # the highest address an initrd may have
    (FILES / "vmlinuz").write_bytes(kernel)
    (FILES / "initrd.img").write_bytes(bytes(512))

    for name in ("disk.raw", "disk2.raw", "disk3.raw", "cd.iso", "chain-base.raw"):
        (FILES / name).write_bytes(bytes(1 << 20))
    (FILES / "floppy.img").write_bytes(bytes(1474560))
    for name, size in (("nvdimm.raw", 4 << 20), ("pmem.raw", 2 << 20)):
        (FILES / name).write_bytes(bytes(size))

    def qcow2(name, *options):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(FILES / name), "1M"], check=True)

    qcow2("plain.qcow2")
    qcow2("chain-mid.qcow2", "-b", str(FILES / "chain-base.raw"), "-F", "raw")
    qcow2("chain-top.qcow2", "-b", "chain-mid.qcow2", "-F", "qcow2")
    base = FILES / "over-base.raw"
    base.write_bytes(bytes(1 << 20))
    qcow2("over-missing.qcow2", "-b", str(base), "-F", "raw")
    base.unlink()
    # qemu-img no longer writes a backing file without its format: end the header's extensions at the format.
    qcow2("over-unformatted.qcow2", "-b", str(FILES / "disk2.raw"), "-F", "raw")
    image = (FILES / "over-unformatted.qcow2").read_bytes()
    (FILES / "over-unformatted.qcow2").write_bytes(image.replace(bytes.fromhex("e2792aca"), bytes(4), 1))
    qcow2("over-raw.qcow2", "-b", str(FILES / "disk2.raw"), "-F", "raw")

    for pipe in ("pipe.in", "pipe.out", "pipe"):
        if not (FILES / pipe).exists():
            os.mkfifo(FILES / pipe)
    for number in (0, 1):
        block = FILES / f"block{number}"
        if not block.exists():
            os.mknod(block, stat.S_IFBLK | 0o600, os.makedev(7, number))
        if run("losetup", f"/dev/loop{number}").returncode != 0:
            (FILES / f"loop{number}.raw").write_bytes(bytes(1 << 20))
            run("losetup", f"/dev/loop{number}", str(FILES / f"loop{number}.raw"))


def make_bridge():
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "link", "set", BRIDGE, "up")


class Renumber:
    """Replaces run-specific names by their order of appearance within one guest."""

    PATTERNS = [
        (re.compile(r"/dev/pts/\d+"), "/dev/pts/{}", 0),
        (re.compile(r"\bvnet\d+\b"), "vnet{}", 0),
        (re.compile(r"(?<=,fd=)\d+|(?<=fd\":\")\d+|(?<=#)\d+"), "{}", 100),
    ]

    def __init__(self):
        self.seen = [{} for _ in self.PATTERNS]

    def __call__(self, text):
        text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z ", "", text)  # QEMU's own log lines
        text = re.sub(r"(domain-|/channel/)\d+-", r"\g<1>1-", text)
        text = re.sub(r"^(<domain type='[a-z]*') id='\d+'", r"\1 id='1'", text)
        # Several queues, several descriptors: set apart while they are numbered.
        text = re.sub(r'(?<=fds":")[\d:]+', lambda m: "#" + m.group(0).replace(":", ":#"), text)
        for (pattern, name, first), seen in zip(self.PATTERNS, self.seen):
            text = pattern.sub(lambda m: seen.setdefault(m.group(0), name.format(first + len(seen))), text)
        return text.replace('"#', '"').replace(":#", ":")


def last_start(log):
    """The environment and arguments of the last start in a guest's log."""
    lines = log.read_text().splitlines()
    starts = [i for i, line in enumerate(lines) if ": starting up libvirt version" in line]
    if not starts:
        return [], []
    begin = starts[-1]
    words = []
    for line in lines[begin + 1 :]:
        words += shlex.split(line.removesuffix("\\"))
        if not line.endswith(" \\"):
            break
    program = next(i for i, word in enumerate(words) if word.startswith("/"))
    return words[:program], words[program:]


def write_error(entry, step, error, renumber):
    words = renumber(error.get_error_message())
    (entry / "error").write_text(f"{step} {error.get_error_code()} {error.get_error_domain()}\n{words}\n")
    return f"{step}: {words.splitlines()[-1]}"


def record(connection, entry):
    name = entry.name
    for old in ("inactive.xml", "live.xml", "args", "env", "error"):
        (entry / old).unlink(missing_ok=True)
    renumber = Renumber()
    try:
        domain = connection.defineXML((entry / "input.xml").read_text())
    except libvirt.libvirtError as error:
        return write_error(entry, "define", error, renumber)
    inactive = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    (entry / "inactive.xml").write_text(inactive)
    log = LOG / f"{name}.log"
    log.unlink(missing_ok=True)
    result, live = "ok", None
    try:
        domain.create()
        live = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)
        domain.destroy()
    except libvirt.libvirtError as error:
        result = write_error(entry, "start", error, renumber)
    domain.undefine()
    if log.exists():
        env, args = last_start(log)
        if args:
            (entry / "args").write_text(renumber("\n".join(args)) + "\n")
        if args and "qemu:env" in inactive:
            env = [line for line in env if not line.startswith("PATH=")]
            (entry / "env").write_text(renumber("\n".join(env)) + "\n")
    if live:
        (entry / "live.xml").write_text(renumber(live))
    return result


def main():
    make_files()
    make_bridge()
    libvirt.registerErrorHandler(lambda *_: None, None)
    connection = libvirt.open("qemu:///system")
    wanted = sys.argv[1:]
    for entry in sorted(path.parent for path in CORPUS.glob("*/input.xml")):
        if not wanted or entry.name in wanted:
            print(f"{entry.name}: {record(connection, entry)}", flush=True)


if __name__ == "__main__":
    main()
