import os
import sys
import threading

import libvirt

libvirt.registerErrorHandler(lambda context, error: None, None)  # tests look at exceptions, not at stderr
libvirt.virEventRegisterDefaultImpl()


def run_events():
    while True:
        libvirt.virEventRunDefaultImpl()


def in_background():
    threading.Thread(target=run_events, daemon=True).start()


LIFECYCLE = {
    "defined": ("added", "updated", "renamed", "snapshot"),
    "undefined": ("removed", "renamed"),
    "started": ("booted", "migrated", "restored", "snapshot", "wakeup", "recovered"),
    "suspended": ("paused", "migrated", "ioerror", "watchdog", "restored", "snapshot", "api-error", "postcopy",
                  "postcopy-failed"),
    "resumed": ("unpaused", "migrated", "snapshot", "postcopy", "postcopy-failed"),
    "stopped": ("shutdown", "destroyed", "crashed", "migrated", "saved", "failed", "snapshot", "recovered"),
    "shutdown": ("finished", "guest", "host"),
    "pmsuspended": ("memory", "disk"),
    "crashed": ("panicked", "crashloaded"),
}


def watch_events(conn):
    def lifecycle(conn, domain, event, detail, opaque):
        name = list(LIFECYCLE)[event]
        print(domain.name(), name, LIFECYCLE[name][detail])

    conn.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle, None)
    print("watching")
    run_events()


def console(conn, name):
    stream = conn.newStream(0)
    conn.lookupByName(name).openConsole(None, stream, 0)
    print("connected")

    def type_input():
        while True:
            keys = os.read(0, 4096)
            if not keys:
                return
            while keys:
                keys = keys[stream.send(keys):]

    threading.Thread(target=type_input, daemon=True).start()
    while True:
        data = stream.recv(4096)
        if not data:
            return
        sys.stdout.buffer.write(data)
        sys.stdout.flush()


def watch_all_events(conn):
    """Prints every event of a domain: its kind, the domain, what else comes with it."""
    kinds = {getattr(libvirt, name): name.removeprefix("VIR_DOMAIN_EVENT_ID_").lower() for name in dir(libvirt)
             if name.startswith("VIR_DOMAIN_EVENT_ID_") and not name.endswith("_LAST")}

    def watch(kind, name):
        def heard(conn, domain, *rest):
            if name == "lifecycle":
                event = list(LIFECYCLE)[rest[0]]
                rest = (LIFECYCLE[event][rest[1]], None)
                print(domain.name(), event, *rest[:-1])
            else:
                # How much and how fast is another matter in each run; what is told of it is not.
                known = [sorted(part) if isinstance(part, dict) and "time_elapsed" in part else part for part in rest]
                print(domain.name(), name, *known[:-1])

        conn.domainEventRegisterAny(None, kind, heard, None)

    for kind, name in sorted(kinds.items()):
        watch(kind, name)
    print("watching")
    run_events()
