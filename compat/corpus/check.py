#!/usr/bin/python3
"""Define and start every guest of the domain corpus on a running daemon; compare with libvirt's recording.

    compat/corpus/check.py URI ROOT [NAME...]

URI is the daemon's (`qemu+unix:///system?socket=…`), ROOT what stands before its paths. Run it as root on a
machine, or in a network namespace, of its own: it makes the recording's files and its bridge. What differs is
printed; the exit status says whether anything did. The CPU of running guests is left out: it is the host's.
"""

import re
import sys

import libvirt
import record

CPU = re.compile(r"  <cpu mode=.*?</cpu>\n", re.S)


def first_difference(expected, found):
    pairs = zip(expected.splitlines() + [""], found.splitlines() + [""])
    theirs, ours = next(((a, b) for a, b in pairs if a != b), ("", ""))
    return f"\n    libvirt: {theirs}\n    here:    {ours}"


class Guest:
    def __init__(self, entry, root):
        self.entry, self.root, self.renumber = entry, root.rstrip("/"), record.Renumber()
        self.differences = []

    def recorded(self, name):
        path = self.entry / name
        return path.read_text() if path.exists() else None

    def compare(self, what, expected, found):
        found = self.renumber(found).replace(self.root, "") if self.root else self.renumber(found)
        if expected != found:
            self.differences.append(f"{what}:{first_difference(expected or '(nothing)', found)}")

    def refused(self, step, error):
        words = f"{step} {error.get_error_code()} {error.get_error_domain()}\n{error.get_error_message()}\n"
        self.compare("refusal", self.recorded("error"), words)

    def check(self, connection):
        try:
            domain = connection.defineXML((self.entry / "input.xml").read_text())
        except libvirt.libvirtError as error:
            self.refused("define", error)
            return
        try:
            flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
            self.compare("definition", self.recorded("inactive.xml"), domain.XMLDesc(flags))
            self.start(domain)
        finally:
            domain.undefine()

    def start(self, domain):
        try:
            domain.create()
        except libvirt.libvirtError as error:
            self.refused("start", error)
            return
        live = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)
        domain.destroy()
        self.compare("running guest", CPU.sub("", self.recorded("live.xml") or ""), CPU.sub("", live))


def main():
    uri, root, wanted = sys.argv[1], sys.argv[2], sys.argv[3:]
    record.make_files()
    record.make_bridge()
    libvirt.registerErrorHandler(lambda *_: None, None)
    connection = libvirt.open(uri)
    alike = different = 0
    for entry in sorted(path.parent for path in record.CORPUS.glob("*/input.xml")):
        if wanted and entry.name not in wanted:
            continue
        guest = Guest(entry, root)
        guest.check(connection)
        alike, different = alike + (not guest.differences), different + bool(guest.differences)
        for difference in guest.differences:
            print(f"{entry.name}: {difference}")
    print(f"{alike} guests alike, {different} different")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
