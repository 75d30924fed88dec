# What is refused, and how: one line per refusal, with every field of the error. The test sets ROOT (of the daemon),
# READ_ONLY (a URI), TYPE and ROM (of a guest that runs).

import os
import re
import socket

import libvirt_qemu

BOGUS = 0x40000000

with socket.socket() as found:
    found.bind(("0.0.0.0", 0))
    PORT = found.getsockname()[1]


def shown(text):
    if text is None:
        return "-"
    return repr(re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UUID", text).replace(ROOT, "ROOT").replace(str(PORT), "PORT"))


def refused(what, call, *arguments):
    try:
        answer = call(*arguments)
        print(f"{what}: not refused: {type(answer).__name__}")
    except libvirt.libvirtError as e:
        if e.err is None:
            print(f"{what}: no error: {e}")
            return
        numbers = f"{e.get_error_code()} {e.get_error_domain()} {e.get_error_level()}"
        texts = " | ".join(shown(t) for t in (e.get_error_message(), e.get_str1(), e.get_str2(), e.get_str3()))
        print(f"{what}: {numbers} | {texts} | {e.get_int1()} {e.get_int2()}")


def guest(name="other", uuid=None, type_=TYPE, machine="pc", devices="", memory="<memory>16384</memory>", before="", after=""):
    uuid = f"<uuid>{uuid}</uuid>" if uuid else ""
    return f"""<domain type='{type_}'>
  <name>{name}</name>
  {uuid}{memory}{before}
  <os><type arch='x86_64' machine='{machine}'>hvm</type><loader type='rom'>{ROM}</loader></os>
  <on_reboot>restart</on_reboot>{after}
  <devices>{devices}<controller type='usb' model='none'/></devices>
</domain>"""


off = conn.defineXML(guest("off"))
on = conn.defineXML(guest("on", devices=f"<serial type='pty'/><graphics type='vnc' port='{PORT}'/>"))
on.create()
fleeting = conn.createXML(guest("fleeting"))
reader = libvirt.openReadOnly(READ_ONLY)

# who is meant
refused("name", conn.lookupByName, "absent")
refused("uuid", conn.lookupByUUIDString, "00000000-0000-0000-0000-000000000001")
refused("id", conn.lookupByID, 99)

# what a definition may not be
for what, xml in (
    ("blank", " \n"),
    ("no tag", "foo"),
    ("open tag", "<domain"),
    ("unclosed", "<domain>\n<name>x</name>\n"),
    ("mismatch", "<domain type='kvm'>\n  <name>x</nam>\n</domain>\n"),
    ("entity", "<domain>\n\t&nope;</domain>"),
    ("attribute twice", "<domain type='a' type='b'/>"),
    ("unquoted", "<domain type=a/>"),
    ("two roots", "<domain/><domain/>"),
    ("root", "<network/>"),
    ("no type", "<domain><name>x</name></domain>"),
    ("bad type", guest(type_="bogus")),
    ("no name", guest().replace("<name>other</name>", "")),
    ("empty name", guest("")),
    ("slash", guest("a/b")),
    ("newline", guest("a\nb")),
    ("bad uuid", guest(uuid="zz")),
    ("no memory", guest(memory="")),
    ("bad memory", guest(memory="<memory>much</memory>")),
    ("memory unit", guest(memory="<memory unit='acres'>5</memory>")),
    ("bad vcpu", guest(before="<vcpu>many</vcpu>")),
    ("current vcpu", guest(before="<vcpu current='3'>2</vcpu>")),
    ("cpuset", guest(before="<vcpu cpuset='a-b'>2</vcpu>")),
    ("no os", "<domain type='qemu'><name>x</name><memory>1</memory></domain>"),
    ("bad os", guest().replace("hvm", "toast")),
    ("bad arch", guest().replace("x86_64", "toast")),
    ("machine", guest(machine="toaster")),
    ("bad on_reboot", guest().replace("restart<", "explode<")),
    ("cpu mode", guest(before="<cpu mode='bogus'/>")),
    ("cpu model", guest(before="<cpu mode='custom' match='exact'><model fallback='forbid'>Bogus</model></cpu>")),
    ("cpu policy", guest(before="<cpu mode='custom'><model>qemu64</model><feature policy='maybe' name='vmx'/></cpu>")),
    ("cpu topology", guest(before="<vcpu>3</vcpu><cpu><topology sockets='2' cores='1' threads='1'/></cpu>")),
    ("clock", guest(before="<clock offset='bogus'/>")),
    ("timer", guest(before="<clock offset='utc'><timer name='bogus'/></clock>")),
    ("feature", guest(before="<features><bogus/></features>")),
    ("hyperv", guest(before="<features><hyperv><bogus state='on'/></hyperv></features>")),
    ("emulator", guest(devices="<emulator>/no/such/qemu</emulator>")),
    ("disk target", guest(devices="<disk type='file'><source file='/x'/></disk>")),
    ("disk target name", guest(devices="<disk type='file'><source file='/x'/><target dev='what'/></disk>")),
    ("disk bus", guest(devices="<disk type='file'><source file='/x'/><target dev='vda' bus='bogus'/></disk>")),
    ("disk device", guest(devices="<disk type='file' device='bogus'><target dev='vda'/></disk>")),
    ("disk type", guest(devices="<disk type='bogus'><target dev='vda'/></disk>")),
    ("disk cache", guest(devices="<disk type='file'><driver name='qemu' cache='bogus'/><source file='/x'/><target dev='vda'/></disk>")),
    ("disk twice", guest(devices="<disk type='file'><source file='/x'/><target dev='vda'/></disk>" * 2)),
    ("disk driver", guest(devices="<disk type='file'><driver name='phy'/><source file='/x'/><target dev='vda'/></disk>")),
    ("disk format", guest(devices="<disk type='file'><driver name='qemu' type='bogus'/><source file='/x'/><target dev='vda'/></disk>")),
    ("nic type", guest(devices="<interface type='bogus'/>")),
    ("nic no bridge", guest(devices="<interface type='bridge'/>")),
    ("nic mac", guest(devices="<interface type='user'><mac address='zz'/></interface>")),
    ("nic multicast", guest(devices="<interface type='user'><mac address='01:00:00:00:00:00'/></interface>")),
    ("nic model", guest(devices="<interface type='user'><model type='b&amp;d'/></interface>")),
    ("serial type", guest(devices="<serial type='bogus'/>")),
    ("serial path", guest(devices="<serial type='file'/>")),
    ("serial tcp", guest(devices="<serial type='tcp'/>")),
    ("graphics", guest(devices="<graphics type='bogus'/>")),
    ("vnc port", guest(devices="<graphics type='vnc' port='many'/>")),
    ("video", guest(devices="<video><model type='bogus'/></video>")),
    ("input", guest(devices="<input type='bogus' bus='usb'/>")),
    ("input bus", guest(devices="<input type='mouse' bus='bogus'/>")),
    ("controller", guest(devices="<controller type='bogus'/>")),
    ("controller model", guest(devices="<controller type='scsi' model='bogus'/>")),
    ("controller index", guest(devices="<controller type='scsi' index='x'/>")),
    ("address type", guest(devices="<rng model='virtio'><backend model='random'>/dev/urandom</backend><address type='bogus'/></rng>")),
    ("address used", guest(devices="<rng model='virtio'><backend model='random'>/dev/urandom</backend><address type='pci' slot='2'/></rng>" * 2)),
    ("rng backend", guest(devices="<rng model='virtio'><backend model='bogus'/></rng>")),
    ("balloon", guest(devices="<memballoon model='bogus'/>")),
    ("watchdog", guest(devices="<watchdog model='bogus'/>")),
    ("watchdog action", guest(devices="<watchdog model='i6300esb' action='bogus'/>")),
    # The driver's, not the reader's.
    ("root bus model", guest(machine="q35", devices="<controller type='pci' model='pcie-root-port'/>")),
    ("root bus index", guest(devices="<controller type='pci' index='1' model='pci-root'/>")),
    ("expander on q35", guest(machine="q35", devices="<controller type='pci' index='1' model='pci-expander-bus'/>")),
    ("express expander on pc", guest(devices="<controller type='pci' index='1' model='pcie-expander-bus'/>")),
    ("expander of no node", guest(machine="q35", devices="<controller type='pci' index='1' model='pcie-expander-bus'><target><node>3</node></target></controller>")),
    ("bridge behind itself", guest(devices="<controller type='pci' index='1' model='pci-bridge'><address type='pci' bus='1' slot='1'/></controller>")),
    ("usb ports", guest().replace("model='none'", "model='qemu-xhci' ports='16'")),
    ("tseg on pc", guest(before="<features><smm state='on'><tseg unit='MiB'>8</tseg></smm></features>")),
    ("tseg size", guest(machine="q35", before="<features><smm state='on'><tseg unit='KiB'>8</tseg></smm></features>")),
    ("ide place", guest(devices="<controller type='ide' index='0'><address type='pci' slot='9'/></controller>")),
    ("sata place", guest(machine="q35", devices="<controller type='sata' index='0'><address type='pci' slot='9'/></controller>")),
    ("virtio disk on a drive", guest(devices="<disk type='file'><source file='/x'/><target dev='vda' bus='virtio'/><address type='drive'/></disk>")),
    ("usb without usb", guest(devices="<input type='tablet' bus='usb'/>")),
    ("no first vcpu", guest(before="<vcpu>2</vcpu><vcpus><vcpu id='0' enabled='no'/><vcpu id='1' enabled='yes'/></vcpus>")),
    ("first vcpu pluggable", guest(before="<vcpu>2</vcpu><vcpus><vcpu id='0' enabled='yes' hotpluggable='yes'/><vcpu id='1' enabled='yes'/></vcpus>")),
    ("vcpu order", guest(before="<vcpu>2</vcpu><vcpus><vcpu id='0' enabled='yes' order='1'/><vcpu id='1' enabled='yes'/></vcpus>")),
    ("argument", guest(after="<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><q:arg/></q:commandline>")),
    ("environment", guest(after="<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><q:env name='1'/></q:commandline>")),
    ("override", guest(after="<q:override xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><q:device/></q:override>")),
    ("override of id", guest(after="<q:override xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><q:device alias='ua-x'><q:frontend><q:property name='id' type='string' value='x'/></q:frontend></q:device></q:override>")),
    ("override's value", guest(after="<q:override xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><q:device alias='ua-x'><q:frontend><q:property name='y' type='signed' value='x'/></q:frontend></q:device></q:override>")),
    ("capability", guest(after="<q:capabilities xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><q:add/></q:capabilities>")),
    ("name of another", guest("off", uuid="8d2ea3f2-66bd-4fb5-8b7c-2a2ac6f8d1b1")),
    ("uuid of another", guest("other", uuid=off.UUIDString())),
):
    refused(f"define {what}", conn.defineXML, xml)
refused("create of what runs", conn.createXML, guest("on", uuid=on.UUIDString()))
refused("create name of another", conn.createXML, guest("on", uuid="8d2ea3f2-66bd-4fb5-8b7c-2a2ac6f8d1b1"))

# what cannot start
for what, devices in (
    ("disk", "<disk type='file'><source file='/nonexistent/d'/><target dev='vda'/></disk>"),
    ("port", f"<graphics type='vnc' port='{PORT}'/>"),
    ("bridge", "<interface type='bridge'><source bridge='nobridge0'/></interface>"),
    ("serial", "<serial type='file'><source path='/nonexistent/log'/></serial>"),
):
    domain = conn.defineXML(guest("broken", devices=devices))
    refused(f"start missing {what}", domain.create)
    domain.undefine()

# what a domain in that state does not do
for what, domain in (("off", off), ("on", on), ("fleeting", fleeting)):
    for name, call in (
        ("create", domain.create),
        ("autostart", lambda: domain.setAutostart(1)),
        ("console name", lambda: domain.openConsole("bogus", conn.newStream(0), 0)),
        ("metadata", lambda: domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, "urn:none", 0)),
        ("metadata kind", lambda: domain.metadata(77, None, 0)),
        ("description", lambda: domain.metadata(libvirt.VIR_DOMAIN_METADATA_DESCRIPTION, None, 0)),
        ("title newline", lambda: domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_TITLE, "a\nb", None, None, 0)),
        ("set metadata broken", lambda: domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, "<a", "k", "urn:a", 0)),
        ("current snapshot", domain.snapshotCurrent),
        ("current vcpus of maximum", lambda: domain.vcpusFlags(libvirt.VIR_DOMAIN_VCPU_LIVE | libvirt.VIR_DOMAIN_VCPU_CONFIG)),
        ("guest vcpus", lambda: domain.vcpusFlags(libvirt.VIR_DOMAIN_VCPU_GUEST)),
        ("block info", lambda: domain.blockInfo("vdz")),
        ("screenshot", lambda: domain.screenshot(conn.newStream(0), 0)),
        ("screenshot of another", lambda: domain.screenshot(conn.newStream(0), 7)),
        ("job stats", lambda: domain.jobStats(0)["type"]),
        ("monitor unknown", lambda: libvirt_qemu.qemuMonitorCommand(domain, '{"execute": "bogus"}', 0)),
    ):
        if (what, name) not in (("off", "create"), ("off", "autostart")):
            refused(f"{what} {name}", call)
for name, call in (
    ("suspend", off.suspend), ("resume", off.resume), ("shutdown", off.shutdown), ("reboot", lambda: off.reboot(0)),
    ("reset", off.reset), ("destroy", off.destroy), ("console", lambda: off.openConsole(None, conn.newStream(0), 0)),
    ("memory stats", off.memoryStats), ("control info", off.controlInfo), ("vcpus", off.vcpus), ("job info", lambda: list(off.jobInfo())), ("job stats", lambda: list(off.jobStats())),
    ("live vcpus", lambda: off.vcpusFlags(libvirt.VIR_DOMAIN_VCPU_LIVE)),
    ("live description", lambda: off.setMetadata(libvirt.VIR_DOMAIN_METADATA_DESCRIPTION, "x", None, None, libvirt.VIR_DOMAIN_AFFECT_LIVE)),
    ("undefine nvram", lambda: off.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)),
):
    refused(f"off {name}", call)
refused("fleeting undefine", fleeting.undefine)
refused("fleeting config", lambda: fleeting.vcpusFlags(libvirt.VIR_DOMAIN_VCPU_CONFIG))
refused("fleeting config description", lambda: fleeting.setMetadata(libvirt.VIR_DOMAIN_METADATA_DESCRIPTION, "x", None, None, libvirt.VIR_DOMAIN_AFFECT_CONFIG))
refused("on agent shutdown", lambda: on.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT))
refused("on agent reboot", lambda: on.reboot(libvirt.VIR_DOMAIN_REBOOT_GUEST_AGENT))
refused("on resume", on.resume)

# flag words
stream = lambda: conn.newStream(0)
for name, call in (
    ("define", lambda: conn.defineXMLFlags(guest(), BOGUS)),
    ("createXML", lambda: conn.createXML(guest(), BOGUS)),
    ("listAllDomains", lambda: conn.listAllDomains(BOGUS)),
    ("cpu map", lambda: conn.getCPUMap(BOGUS)),
    ("cpu stats", lambda: conn.getCPUStats(-1, BOGUS)),
    ("memory stats of host", lambda: conn.getMemoryStats(-1, BOGUS)),
    ("cpu stats of none", lambda: conn.getCPUStats(77, 0)),
    ("memory stats of none", lambda: conn.getMemoryStats(77, 0)),
    ("free pages", lambda: conn.getFreePages([4], 0, 1, BOGUS)),
    ("free pages of size", lambda: conn.getFreePages([5], 0, 1, 0)),
    ("free pages of none", lambda: conn.getFreePages([4], 7, 1, 0)),
    ("cells", lambda: conn.getCellsFreeMemory(7, 1)),
    ("domain capabilities", lambda: conn.getDomainCapabilities(None, None, None, None, BOGUS)),
    ("domain capabilities arch", lambda: conn.getDomainCapabilities(None, "toast", None, None, 0)),
    ("domain capabilities emulator", lambda: conn.getDomainCapabilities("/bogus", None, None, None, 0)),
    ("domain capabilities machine", lambda: conn.getDomainCapabilities(None, "x86_64", "toaster", None, 0)),
    ("domain capabilities type", lambda: conn.getDomainCapabilities(None, "x86_64", None, "bogus", 0)),
    ("cpu model names", lambda: conn.getCPUModelNames("x86_64", BOGUS)),
    ("cpu model names arch", lambda: conn.getCPUModelNames("toast", 0)),
    ("max vcpus", lambda: conn.getMaxVcpus("bogus")),
    ("undefine", lambda: off.undefineFlags(BOGUS)),
    ("create", lambda: off.createWithFlags(BOGUS)),
    ("destroy", lambda: off.destroyFlags(BOGUS)),
    ("shutdown", lambda: off.shutdownFlags(BOGUS)),
    ("reboot", lambda: off.reboot(BOGUS)),
    ("reset", lambda: off.reset(BOGUS)),
    ("state", lambda: off.state(BOGUS)),
    ("xml", lambda: off.XMLDesc(BOGUS)),
    ("vcpus", lambda: off.vcpusFlags(BOGUS)),
    ("control info", lambda: off.controlInfo(BOGUS)),
    ("metadata", lambda: off.metadata(0, None, BOGUS)),
    ("set metadata", lambda: off.setMetadata(0, "x", None, None, BOGUS)),
    ("managed save", lambda: off.hasManagedSaveImage(BOGUS)),
    ("has snapshot", lambda: off.hasCurrentSnapshot(BOGUS)),
    ("pin info", lambda: off.vcpuPinInfo(BOGUS)),
    ("emulator pin info", lambda: off.emulatorPinInfo(BOGUS)),
    ("block info", lambda: off.blockInfo("vda", BOGUS)),
    ("memory stats", off.memoryStats),
    ("console", lambda: on.openConsole(None, stream(), BOGUS)),
    ("screenshot", lambda: on.screenshot(stream(), 0, BOGUS)),
    ("monitor", lambda: libvirt_qemu.qemuMonitorCommand(on, "info status", BOGUS)),
):
    refused(f"flags {name}", call)

# what storage refuses, and who says so: the driver, a helper of it, a program, a stream
os.mkdir(f"{ROOT}/images")
with open(f"{ROOT}/images/file", "w") as made:
    made.write("x")


def pool(name, path):
    return conn.storagePoolDefineXML(f"<pool type='dir'><name>{name}</name><target><path>{ROOT}/{path}</path></target></pool>")


def volume(name, rest="", capacity="1048576"):
    return f"<volume><name>{name}</name><capacity>{capacity}</capacity>{rest}</volume>"


def streamed(method, offset, length, data=None):
    through = stream()
    method(through, offset, length)
    through.send(data) if data else through.recv(10)
    through.finish()


absent, below = pool("absent", "absent"), pool("below", "images/file/below")
images = pool("images", "images")
images.create()
refused("pool without directory", absent.create)
refused("pool that is a file", pool("file", "images/file").create)
refused("pool below a file", below.build)
absent.build()
absent.create()
os.rmdir(f"{ROOT}/absent")
refused("pool whose directory went", absent.refresh)
refused("pool to delete", absent.delete)
for what, xml in (
    ("nothing secret", volume("v", "<target><encryption format='luks'/></target>")),
    ("two secrets", volume("v", "<target><encryption format='luks'>" + "<secret type='passphrase' uuid='00000000-0000-0000-0000-000000000001'/>" * 2 + "</encryption></target>")),
    ("absent secret", volume("v", "<target><encryption format='luks'><secret type='passphrase' uuid='00000000-0000-0000-0000-000000000001'/></encryption></target>")),
    ("old", volume("v", "<target><format type='qcow2'/><compat>2.2</compat></target>")),
    ("features", volume("v", "<target><format type='qcow2'/><compat>0.10</compat><features><lazy_refcounts/></features></target>")),
    ("format", volume("v", "<target><format type='nope'/></target>")),
    ("backing", volume("v", "<target><format type='qcow2'/></target><backingStore><path>/absent</path><format type='qcow2'/></backingStore>")),
    ("raw backing", volume("v", "<backingStore><path>/absent</path></backingStore>")),
    ("slash", volume("a/b")),
    ("long", volume("n" * 300)),
    ("capacity", volume("v", capacity="9" * 20)),
    ("there", volume("file")),
):
    refused(f"volume {what}", images.createXML, xml)
gone, kept = images.createXML(volume("gone")), images.createXML(volume("kept"))
os.unlink(gone.path())
refused("gone volume resize", gone.resize, 2097152)
refused("gone volume info", gone.info)
refused("gone volume wipe", gone.wipe)
refused("gone volume clone", images.createXMLFrom, volume("clone"), gone)
refused("gone volume download", streamed, gone.download, 0, 0)
refused("gone volume upload", streamed, gone.upload, 0, 0, b"x")
os.mkdir(f"{ROOT}/images/directory")
images.refresh()
refused("directory download", streamed, images.storageVolLookupByName("directory").download, 0, 0)
refused("volume shrink", kept.resize, 1024)
refused("volume grow too far", kept.resize, 1 << 62, 1)
refused("volume wipe pattern", kept.wipePattern, 99)
refused("volume lookup", conn.storageVolLookupByPath, "/absent")
refused("pool sources", conn.findStoragePoolSources, "nope", None)

# who may only look
seen = reader.lookupByName("on")
for name, call in (
    ("define", lambda: reader.defineXML(guest())), ("createXML", lambda: reader.createXML(guest())),
    ("create", seen.create), ("destroy", seen.destroy), ("shutdown", seen.shutdown), ("undefine", seen.undefine),
    ("suspend", seen.suspend), ("reset", seen.reset), ("autostart", lambda: seen.setAutostart(1)),
    ("metadata", lambda: seen.setMetadata(0, "x", None, None, 0)),
    ("secrets", lambda: seen.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)),
    ("console", lambda: seen.openConsole(None, reader.newStream(0), 0)),
    ("screenshot", lambda: seen.screenshot(reader.newStream(0), 0)),
    ("monitor", lambda: libvirt_qemu.qemuMonitorCommand(seen, "info status", 1)),
    ("guest vcpus", lambda: seen.vcpusFlags(libvirt.VIR_DOMAIN_VCPU_GUEST)),
):
    refused(f"read-only {name}", call)

on.destroy()
fleeting.destroy()
refused("gone state", fleeting.state)
refused("gone create", fleeting.create)
refused("gone xml", fleeting.XMLDesc)
