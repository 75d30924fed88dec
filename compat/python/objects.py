"""Objects, errors, events, streams, threads, several connections."""
import threading

import libvirt
from runner import DIRECTORY, URI, attempt, error_text, guest


def heard_until(conn, wanted, act):
    """What lifecycle events `act` makes, up to the wanted one."""
    events, over = [], threading.Event()

    def heard(conn, domain, event, detail, opaque):
        events.append((domain.name(), event, detail))
        if (event, detail) == wanted:
            over.set()

    number = conn.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, heard, None)
    act()
    print("over", over.wait(30), events)
    conn.domainEventDeregisterAny(number)


def check_connection(conn):
    print(conn.getType(), conn.isAlive(), conn.isEncrypted(), conn.isSecure(), conn.getLibVersion())
    print(conn.getMaxVcpus("kvm"), conn.getURI(), len(conn.getInfo()))
    print(conn.listAllDomains(), conn.numOfDomains(), conn.listDefinedDomains())
    attempt(conn.lookupByName, "nobody")
    attempt(conn.lookupByID, 99)
    attempt(conn.lookupByUUIDString, "0a81f5b2-8403-7b23-c8d6-21ccc2f80d99")
    attempt(conn.defineXML, "<domain")
    attempt(conn.defineXML, "")
    attempt(conn.getCPUModelNames, "pdp11")
    attempt(conn.storagePoolLookupByName, "nobody")
    attempt(conn.secretLookupByUUIDString, "0a81f5b2-8403-7b23-c8d6-21ccc2f80d99")
    attempt(conn.secretLookupByUsage, 99, "x")


def check_domain(conn):
    domain = conn.defineXML(guest("halt"))
    print(domain.name(), domain.ID(), domain.isActive(), domain.isPersistent(), domain.isUpdated(), domain.autostart())
    attempt(domain.suspend)
    attempt(domain.destroy)
    attempt(domain.setAutostart, 1)
    attempt(domain.create)
    attempt(domain.create)
    print(domain.state(), domain.info()[:4], domain.maxMemory(), domain.maxVcpus(), domain.OSType(), domain.hasCurrentSnapshot())
    attempt(domain.createWithFlags, 1 << 20)
    attempt(domain.setMemory, 1)
    attempt(domain.blockInfo, "vda")
    attempt(domain.interfaceStats, "vnet0")
    attempt(domain.memoryStats, 1 << 5)
    attempt(domain.migrateToURI3, "qemu+unix:///system?socket=/nowhere", {}, 0)
    attempt(domain.setSchedulerParameters, {"bogus": 1})
    attempt(domain.sendKey, 99, 0, [1], 1, 0)
    attempt(domain.metadata, 99, None)
    attempt(domain.XMLDesc, 1 << 20)
    attempt(domain.undefine)
    attempt(domain.destroyFlags, 1 << 9)
    attempt(domain.destroy)
    attempt(domain.state)


def check_lifecycle_events(conn):
    domain = conn.defineXML(guest("halt"))

    def live():
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        domain.resume()
        domain.suspend()
        domain.reset()
        domain.destroy()

    heard_until(conn, (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED), live)
    heard_until(conn, (libvirt.VIR_DOMAIN_EVENT_UNDEFINED, libvirt.VIR_DOMAIN_EVENT_UNDEFINED_REMOVED), domain.undefine)


def check_two_connections(conn):
    other = libvirt.open(URI)
    domain = conn.defineXML(guest("halt"))
    heard_until(other, (libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STARTED_BOOTED), domain.create)
    theirs = other.lookupByName("halt")
    print(theirs.UUIDString() == domain.UUIDString(), theirs.state())
    theirs.destroy()
    print(domain.state(), domain.isActive())
    theirs.undefine()
    attempt(domain.info)
    attempt(domain.create)
    other.close()
    attempt(theirs.name)
    try:
        theirs.info()
    except libvirt.libvirtError as error:
        print(error_text(error))


def check_autodestroy_and_reconnect(conn):
    mine = libvirt.open(URI)
    mine.createXML(guest("mine"), libvirt.VIR_DOMAIN_START_AUTODESTROY)
    print(sorted(domain.name() for domain in conn.listAllDomains()))
    heard_until(conn, (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED), mine.close)
    print(conn.numOfDomains())
    again = libvirt.open(URI)
    print(again.isAlive(), again.numOfDomains())
    again.close()


def check_read_only(conn):
    reader = libvirt.openReadOnly(URI)
    conn.defineXML(guest("halt"))
    domain = reader.lookupByName("halt")
    attempt(domain.create)
    attempt(domain.XMLDesc, libvirt.VIR_DOMAIN_XML_SECURE)
    attempt(reader.defineXML, guest("other"))
    attempt(domain.setAutostart, 1)
    conn.lookupByName("halt").undefine()
    reader.close()


def check_threads(conn):
    """One connection shared by many: every call gets its own answer."""
    names = [f"many{number}" for number in range(8)]
    wrong = []

    def live(name):
        domain = conn.defineXML(guest(name))
        for _ in range(5):
            domain.create()
            if domain.name() != name or not domain.isActive():
                wrong.append(name)
            domain.destroy()
        domain.undefine()

    threads = [threading.Thread(target=live, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("wrong", wrong, conn.numOfDomains())


def check_streams(conn):
    pool = conn.storagePoolCreateXML(f"<pool type='dir'><name>files</name><target><path>{DIRECTORY}</path></target></pool>")
    volume = pool.createXML("<volume><name>v</name><capacity>65536</capacity></volume>")
    data = bytes(range(256)) * 256
    stream = conn.newStream()
    volume.upload(stream, 0, len(data))
    at = 0
    while at < len(data):
        at += stream.send(data[at:at + 10000])
    stream.finish()
    stream, back = conn.newStream(), b""
    volume.download(stream, 0, 0)
    while part := stream.recv(10000):
        back += part
    stream.finish()
    print(len(back), back == data)
    stream = conn.newStream()
    volume.download(stream, 0, 0)
    attempt(stream.abort)
    attempt(volume.download, conn.newStream(), 1 << 30, 0)
    domain = conn.createXML(guest("talk", "<serial type='pty'/><console type='pty'/>"))
    stream = conn.newStream(libvirt.VIR_STREAM_NONBLOCK)
    domain.openConsole(None, stream)
    attempt(stream.recv, 10)
    attempt(domain.openConsole, None, conn.newStream())
    attempt(domain.openConsole, "nothing", conn.newStream())
    stream.abort()
    domain.destroy()
    volume.delete()
    pool.destroy()
