"""Runs modules of libvirt-test-api, each in a process of its own, and prints how each ended and what libvirt refused."""

import importlib
import logging
import os
import subprocess
import sys

LIBRARY = sys.argv[1]
DIR, ROM, TYPE = (os.environ[name] for name in ("DIR", "ROM", "TYPE"))
DISK, POOL = f"{DIR}/disk.qcow2", f"{DIR}/pool"
GUEST = f"""<domain type='{TYPE}'><name>tested</name><memory unit='MiB'>64</memory><vcpu current='2'>4</vcpu><iothreads>2</iothreads>
<os><type arch='x86_64' machine='q35'>hvm</type><loader type='rom'>{ROM}</loader></os><features><acpi/><apic/></features>
<devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{DISK}'/><target dev='vda' bus='virtio'/></disk>
<controller type='usb' model='none'/><controller type='pci' index='0' model='pcie-root'/>
{"".join(f"<controller type='pci' index='{n}' model='pcie-root-port'/>" for n in range(1, 8))}
<serial type='pty'/><graphics type='vnc' port='-1'/></devices></domain>"""
SECRET = "c36750b2-6fb9-4c5c-a9b9-5b1f2b0d0001"

# State that a module finds: none, a guest that is off, or one that runs; then the module and what it is told.
CASES = []


def cases(guest, folder, *modules, **parameters):
    CASES.extend((guest, folder, module, parameters) for module in modules)


def for_each(name, values, guest, folder, *modules, **parameters):
    for value in values.split():
        cases(guest, folder, *modules, **{name: value}, **parameters)


cases(None, "virconn", "connection_getCPUMap", "connection_isEncrypted", "connection_isSecure", "connection_nodeinfo", "connection_getMemoryParameters")
cases(None, "virconn", "connection_cpu_models", arch="x86_64")
for_each("flags", "active inactive persistent transient running shutoff managedsave autostart", "off", "domain", "domain_list")
for_each("autostart", "enable disable", "off", "domain", "autostart")
cases("off", "domain", "domain_uuid", "os_type", "launch_security_info")
cases("off", "domain", "set_maxmem_config", memory="131072")
cases("off", "domain", "set_memory_config", memory=65536, maxmem=131072)
cases("off", "setVcpus", "set_vcpus_config", vcpu="2", maxvcpu="4")
for_each("cpulist", "0-1 ^1", "off", "setVcpus", "vcpupin_config", vcpu="0")
for_each("action", "restart destroy", "off", "domain", "set_lifecycle_action", on_type="poweroff", flags="config")
for state, where in (("off", "config"), ("on", "live"), ("on", "current")):
    cases(state, "domain", "set_metadata", flags=where)
    for_each("metadata_type", "title description element", state, "domain", "set_metadata_type", flags=where, nsuri="http://x.org/ns")
    for_each("type", "title description element", state, "domain", "get_metadata", flags=where)
cases("off", "domain", "perf_events", flags="config")
cases("off", "domain", "start", flags="start_paused")
cases("on", "domain", "suspend", "control_info", "job_info", "abort_job", "blkstats", "block_peek", "memory_stats", "pin_iothread")
cases("on", "domain", "blkstatsflags", flags="0")
cases("on", "domain", "add_iothread", id="5")
cases("on", "domain", "set_iothread", iothread_id="5", max_ns="40000", grow="2", shrink="2")
cases("on", "domain", "del_iothread", id="5")
cases("on", "virconn", "connection_getAllDomainStats", stats="state|cpu|balloon|vcpu|interface|block|perf|iothread", flags="active")
cases("on", "domain", "block_iotune", total_bytes_sec="1000000", total_iops_sec="500")
cases("on", "domain", "set_block_threshold", threshold="1000000")
cases("on", "domain", "block_resize", diskpath="vda", disksize="70M")
cases("on", "domain", "pinemulator", cpulist="0-1")
cases("on", "setVcpus", "set_vcpu", vcpulist="2", state="1")
cases("on", "domain", "block_copy", diskpath=f"{DIR}/copy.qcow2")
for_each("flags", "none relative", "on", "domain", "block_pull", bandwidth="0")
cases("on", "domain", "block_commit")
cases("on", "domain", "dump", file=f"{DIR}/core")
for_each("dumpformat", "elf kdump-zlib kdump-lzo kdump-snappy", "on", "domain", "coredump_with_format", topath=f"{DIR}/core", flags="mem_only")
cases("on", "domain", "save", filepath=f"{DIR}/saved")
cases(None, "domain", "restore", filepath=f"{DIR}/saved")
for flags in ("save_running", "save_paused", "save_bypass_cache", "none"):
    cases("on", "managedsave", "managedsave", flags=flags)
    cases(None, "managedsave", "managedsave_get_xml_desc", "managedsave_define_xml", "managedsave_remove")
for_each("flags", "none redefine current no_metadata halt disk_only reuse_ext quiesce atomic", "on", "snapshot", "snapshot_create", snapshotname="s")
for_each("flags", "none roots leaves metadata inactive active disk_only internal external topological", "off", "snapshot", "snapshot_list")
for_each("flags", "none running paused force", "off", "snapshot", "snapshot_revert", snapshotname="s")
for_each("flags", "metadata_only children children_only none", "off", "snapshot", "snapshot_delete", snapshotname="s")
for_each("checkpoint_name", "c1 c2", "on", "checkpoint", "checkpoint_create", flags="none")
cases("on", "checkpoint", "checkpoint_lookup", "checkpoint_get_xml", "checkpoint_get_parent", checkpoint_name="c1")
for_each("flags", "none roots leaves no_leaves topological descendants", "on", "checkpoint", "list_all_checkpoints", "list_all_children", checkpoint_name="c1")
for_each("flags", "children children_only metadata_only none", "on", "checkpoint", "checkpoint_delete", checkpoint_name="c1")
cases("off", "domain", "undefine")

cases(None, "storage", "define_dir_pool", "build_dir_pool", "activate_pool", poolname="pool", targetpath=POOL)
for_each("flags", "inactive active persistent transient autostart no_autostart dir fs logical disk", None, "storage", "pool_list")
cases(None, "storage", "pool_capabilities", "pool_list_active", "pool_name", "pool_uuid", "pool_info", "pool_lookup_by_target_path", poolname="pool", targetpath=POOL)
for_each("volformat", "raw qcow2 qed vmdk", None, "storage", "create_dir_volume", poolname="pool", volname="made", capacity="10M")
for_each("flags", "0 physical", None, "storage", "vol_info", poolname="pool", volname="made")
cases(None, "storage", "list_volumes", "vol_lookup", "pool_lookup_by_volume", poolname="pool", volname="made")
cases(None, "storage", "vol_clone", poolname="pool", volname="made", clonevolname="cloned")
cases(None, "storage", "vol_resize_delta", poolname="pool", volname="resized", capacity="10M")
cases(None, "storage", "dir_vol_wipe", poolname="pool", volname="wiped", volformat="raw", capacity="5M")
for offset, length in (("0", "0"), ("1048576", "0"), ("0", "1048576"), ("1048576", "1048576")):
    for module in ("dir_vol_upload", "dir_vol_download"):
        cases(None, "storage", module, "delete_dir_volume", poolname="pool", volname=module, volformat="raw", capacity="5M", offset=offset, length=length)
cases(None, "storage", "destroy_pool", "undefine_pool", poolname="pool")
cases(None, "storage", "define_netfs_pool", "undefine_pool", poolname="netfs", sourcehost="127.0.0.1", sourcepath="/x")
for usage, more in (("volume", {"diskpath": "/x.img"}), ("ceph", {}), ("iscsi", {}), ("tls", {"tlsname": "t"}), ("vtpm", {"vtpmname": "v"})):
    cases(None, "secret", "defineSecret", ephemeral="no", private="no", secretUUID=SECRET, usagetype=usage, **more)
    for_each("flag", "noephemeral nonprivate", None, "secret", "secretList")
    cases(None, "secret", "setSecret", "undefineSecret", secretUUID=SECRET, value="abc", usagetype=usage)


def prepare(state):
    """Has the guest be as a module expects it."""
    connection = libvirt.open()
    try:
        domain = connection.lookupByName("tested")
    except libvirt.libvirtError:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", DISK, "64M"], check=True)
        domain = connection.defineXML(GUEST)
    if state == "on" and not domain.isActive():
        domain.create()
    if state == "on" and domain.info()[0] == libvirt.VIR_DOMAIN_PAUSED:
        domain.resume()
    if state == "off" and domain.isActive():
        domain.destroy()
    connection.close()


def run(folder, module, parameters):
    """What a module answers: 0 where it is content."""
    from libvirttestapi.src import sharedmod

    sharedmod.libvirtobj["conn"] = libvirt.open()
    loaded = importlib.import_module(f"libvirttestapi.repos.{folder}.{module}")
    told = {**dict(loaded.optional_params or {}), "guestname": "tested", "conn": "qemu:///system", **parameters}
    template = str(told.get("xml", ""))
    if template.startswith("xmls/"):
        found = [os.path.join(at, template[5:]) for at, _, files in os.walk("xmls") if template[5:] in files]
        told["xml"] = open(found[0]).read()
        for name, value in told.items():
            told["xml"] = told["xml"].replace(name.upper(), str(value))
    logger = logging.getLogger("test-api")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    try:
        return getattr(loaded, module)({**told, "logger": logger})
    finally:
        clean = getattr(loaded, f"{module}_clean", None)
        if clean:
            clean({**told, "logger": logger})


if len(sys.argv) > 2:
    import libvirt

    libvirt.registerErrorHandler(lambda _, error: print("  ", error[2]), None)
    os.chdir(f"{LIBRARY}/usr/share/libvirt-test-api")
    sys.path.insert(0, LIBRARY)
    state, folder, module, parameters = CASES[int(sys.argv[2])]
    if state:
        prepare(state)
    try:
        print("  ", run(folder, module, parameters), flush=True)
    except BaseException as error:
        print("  ", type(error).__name__, flush=True)
    os._exit(0)

for number, (state, folder, module, parameters) in enumerate(CASES):
    told = " ".join(value for name, value in parameters.items() if name not in ("secretUUID", "poolname") and "/" not in str(value) and isinstance(value, str))
    print(f"== {folder}:{module} {told}", flush=True)
    try:
        child = subprocess.run([sys.executable, "-B", __file__, LIBRARY, str(number)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
        said = child.stdout
    except subprocess.TimeoutExpired:
        said = "   takes too long"
    # What modules themselves print is for people; these lines are ours.
    print("".join(line + "\n" for line in said.splitlines() if line.startswith("   ")), end="", flush=True)
