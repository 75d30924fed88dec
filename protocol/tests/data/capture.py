#!/usr/bin/python3
"""Records libvirt's RPC frames: a unix socket proxy that copies both ways and keeps one of each kind.

    capture.py LISTEN DAEMON FILE

Listens on LISTEN, connects each client to the daemon's socket DAEMON, and appends to FILE, when it is told to
end by SIGTERM, a byte `>` (to the daemon) or `<` (from it) and the frame, for every frame unlike those before:
at most two of a program, procedure, type, status and direction, none over 16 KiB.
"""

import os
import signal
import socket
import struct
import sys
import threading

LISTEN, DAEMON, FILE = sys.argv[1:]
MOST, LONGEST = 2, 16384
seen = {}
lock = threading.Lock()


def keep(direction, frame):
    program, version, procedure, kind, serial, status = struct.unpack(">IIiIIi", frame[4:28])
    key = (direction, program, procedure, kind, status)
    with lock:
        kept = seen.setdefault(key, [])
        if len(kept) < MOST and len(frame) <= LONGEST and frame[28:] not in [f[28:] for f in kept]:
            kept.append(frame)


def copy(source, target, direction):
    buffer = b""
    fd_bytes = 0
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(source, 65536, 32)
        except OSError:
            data = b""
        if not data:
            target.close()
            return
        try:
            # A read ends with the byte that carried descriptors.
            target.sendall(data[:-1] if fds else data)
            if fds:
                socket.send_fds(target, [data[-1:]], fds)
        except OSError:
            return
        buffer += data
        while True:
            skip = min(fd_bytes, len(buffer))
            buffer, fd_bytes = buffer[skip:], fd_bytes - skip
            if len(buffer) < 4 or len(buffer) < struct.unpack(">I", buffer[:4])[0]:
                break
            length = struct.unpack(">I", buffer[:4])[0]
            frame, buffer = buffer[:length], buffer[length:]
            if struct.unpack(">I", frame[16:20])[0] in (4, 5):
                fd_bytes = struct.unpack(">I", frame[28:32])[0]
            keep(direction, frame)


def save(*_):
    with lock, open(FILE, "ab") as out:
        for key in sorted(seen, key=lambda key: (key[1], key[2], key[3], key[4], key[0])):
            for frame in seen[key]:
                out.write(key[0].encode() + frame)
    os._exit(0)


signal.signal(signal.SIGTERM, save)
listener = socket.socket(socket.AF_UNIX)
listener.bind(LISTEN)
listener.listen()
while True:
    client, _ = listener.accept()
    daemon = socket.socket(socket.AF_UNIX)
    daemon.connect(DAEMON)
    threading.Thread(target=copy, args=(client, daemon, ">"), daemon=True).start()
    threading.Thread(target=copy, args=(daemon, client, "<"), daemon=True).start()
