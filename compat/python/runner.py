"""Runs the functions `check_*(conn)` of a file in order; what each prints is compared between daemons.

    runner.py FILE URI DIRECTORY ROM
"""
import importlib.util
import sys
import threading

import libvirt

FILE, URI, DIRECTORY, ROM = sys.argv[1:]


def error_text(error):
    """What a program sees of an error."""
    return f"error {error.get_error_code()} from {error.get_error_domain()}: {error.get_error_message()}"


def guest(name, devices=""):
    """A guest whose CPU halts at its first instruction."""
    return (f"<domain type='kvm'><name>{name}</name><memory unit='MiB'>16</memory>"
            f"<os><type arch='x86_64' machine='pc'>hvm</type><loader type='rom'>{ROM}</loader></os>"
            f"<devices><controller type='usb' model='none'/><memballoon model='none'/>{devices}</devices></domain>")


def attempt(function, *arguments):
    """Prints what a call answers, or the error."""
    try:
        print(function.__name__, "->", function(*arguments))
    except libvirt.libvirtError as error:
        print(function.__name__, "->", error_text(error))


def run_events():
    while True:
        libvirt.virEventRunDefaultImpl()


def main():
    libvirt.registerErrorHandler(lambda context, error: None, None)
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=run_events, daemon=True).start()
    spec = importlib.util.spec_from_file_location("checks", FILE)
    checks = importlib.util.module_from_spec(spec)
    sys.modules["runner"] = sys.modules["__main__"]
    spec.loader.exec_module(checks)
    for name, check in vars(checks).items():
        if name.startswith("check_"):
            print("==", name, flush=True)
            conn = libvirt.open(URI)
            try:
                check(conn)
            except Exception as error:
                print("raised", type(error).__name__, error)
            conn.close()


main()
