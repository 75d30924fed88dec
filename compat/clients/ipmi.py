"""What an operator asks of a machine over IPMI."""
import threading

from pyghmi.ipmi import command

machine = command.Command(bmc="127.0.0.1", userid="admin", password="password", port=16230)


def power(wanted):
    machine.set_power(wanted, wait=False)
    for _ in range(100):
        if machine.get_power()["powerstate"] == ("off" if wanted == "off" else "on"):
            break
        threading.Event().wait(0.1)
    print(wanted, machine.get_power())


print(machine.get_power())
for device in ("network", "hd", "cdrom"):
    print(machine.set_bootdev(device), machine.get_bootdev())
for wanted in ("on", "reset", "diag", "off"):
    power(wanted)
