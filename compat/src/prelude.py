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
