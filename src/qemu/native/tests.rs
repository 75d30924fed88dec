//! Command lines that people write, and all of the corpus's, which must come back as they were.

use std::path::Path;

use super::{Invocation, MonitorMode, MonitorPlace, Surroundings, convert};
use crate::conf::domain::Domain;
use crate::conf::domain::defaults::Generator;
use crate::conf::xml::Form;
use crate::qemu::command::tests::{caps, first_difference, for_all, open_all, running};
use crate::qemu::command::{Context, Sandbox, build, needs};
use crate::qemu::facts::facts;
use crate::qemu::process::short_name;
use crate::util::mac::Mac;
use crate::util::paths::Scope;
use crate::util::uuid::Uuid;

struct Fixed;

impl Generator for Fixed {
    fn uuid(&mut self) -> Uuid {
        Uuid([7; 16])
    }

    fn mac(&mut self) -> Mac {
        Mac([2, 0, 0, 0, 0, 1])
    }
}

/// The line of the corpus becomes a definition, and that becomes the same line again.
#[test]
fn a_command_line_of_libvirts_comes_back_as_it_was() {
    let caps = caps();
    for_all("native", "args", |name, _, expected| {
        let theirs: Vec<&str> = expected.lines().collect();
        let args: Vec<String> = theirs.iter().skip(1).map(|arg| (*arg).to_owned()).collect();
        let invocation = Invocation { env: Vec::new(), program: theirs[0].to_owned(), args };
        let native = convert(&invocation, &Surroundings::default()).unwrap();
        let mut domain =
            Domain::parse(&native.xml, Form::INACTIVE).map_err(|error| format!("{error}\n{}", native.xml))?;
        let facts = facts(&caps, &domain);
        domain.defaults(&facts, &mut Fixed).map_err(|error| format!("{error}\n{}", native.xml))?;
        let domain = running(&domain.to_xml(Form::SECURE), name);
        let descriptors = open_all(&needs(&domain));
        let state_dir = format!("/var/lib/libvirt/qemu/domain-{}", short_name(1, name));
        let memory_dir = format!("/var/lib/libvirt/qemu/ram/{}", short_name(1, name));
        let context = Context {
            scope: Scope::System,
            state_dir: Path::new(&state_dir),
            memory_dir: Path::new(&memory_dir),
            monitor: 100,
            descriptors: &descriptors,
            sandbox: Sandbox::On,
            now_s: 0,
            local_offset_s: 0,
            incoming: None,
            settings: &crate::qemu::command::Settings::default(),
            inherited_env: &[],
        };
        let line = build(&domain, &caps, &context).map_err(|error| error.to_string())?;
        let ours: Vec<&str> = std::iter::once(&line.program).chain(&line.args).map(String::as_str).collect();
        if ours == theirs { Ok(()) } else { Err(first_difference(&theirs, &ours)) }
    });
}

fn xml_of(line: &str) -> String {
    let invocation = Invocation::parse(&format!("/usr/bin/qemu-system-x86_64 {line}")).unwrap();
    let surroundings = Surroundings { name: "unnamed".to_owned(), ..Surroundings::default() };
    let native = convert(&invocation, &surroundings).unwrap();
    let domain =
        Domain::parse(&native.xml, Form::INACTIVE).unwrap_or_else(|error| panic!("{error}\n{}", native.xml));
    domain.to_xml(Form::SECURE)
}

fn extras(line: &str) -> Vec<String> {
    let xml = xml_of(line);
    let args =
        xml.lines().filter_map(|line| line.trim().strip_prefix("<qemu:arg value='")?.strip_suffix("'/>"));
    args.map(str::to_owned).collect()
}

/// A line, pieces of its definition in their order; nothing of it is passed on as it is.
const LINES: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "<domain type='qemu'>",
            "<name>unnamed</name>",
            "<memory unit='KiB'>131072<",
            "machine='pc'>hvm",
            "<acpi/>",
            "<emulator>/usr/bin/qemu-system-x86_64<",
            "model='none'",
            "<interface type='user'>",
            "52:54:00:12:34:56",
            "type='e1000'",
            "<serial type='vc'>",
            "type='vga'",
            "<memballoon model='none'/>",
        ],
    ),
    ("-enable-kvm -m 2G", &["type='kvm'", "<memory unit='KiB'>2097152<"]),
    ("-M q35,accel=kvm -m 512", &["type='kvm'", ">524288<", "machine='q35'", "type='e1000e'"]),
    (
        "-machine pc,accel=kvm:tcg,usb=on -m size=1G,slots=2,maxmem=4G",
        &["type='kvm'", "<maxMemory slots='2' unit='KiB'>4194304<", "model='piix3-uhci'"],
    ),
    (
        "-machine type=q35,hpet=off,smm=on,vmport=off -accel tcg,tb-size=64",
        &[
            "type='qemu'",
            "<vmport state='off'/>",
            "<smm state='on'/>",
            "<tb-cache unit='KiB'>65536<",
            "<timer name='hpet' present='no'/>",
        ],
    ),
    (
        "-name web,process=qemu-web -uuid 8d2ea3f2-66bd-4fb5-8b7c-2a2ac6f8d1b1 -nodefaults",
        &[
            "<name>web</name>",
            "<uuid>8d2ea3f2-66bd-4fb5-8b7c-2a2ac6f8d1b1</uuid>",
            "'-name'",
            "'process=qemu-web'",
        ],
    ),
    ("-smp 4", &["<vcpu placement='static'>4<", "sockets='1' dies='1' clusters='1' cores='4' threads='1'"]),
    (
        "-smp 2,maxcpus=8,sockets=2,threads=2",
        &["current='2'>8<", "sockets='2' dies='1' clusters='1' cores='2' threads='2'"],
    ),
    (
        "-cpu host,migratable=off,+vmx -enable-kvm",
        &["mode='host-passthrough'", "migratable='off'", "<feature policy='require' name='vmx'/>"],
    ),
    (
        "-cpu Nehalem,-sse4.2,aes=on,hv_relaxed,hv_spinlocks=0x1fff,kvm=off",
        &[
            "<relaxed state='on'/>",
            "<spinlocks state='on' retries='8191'/>",
            "<hidden state='on'/>",
            ">Nehalem<",
            "policy='disable' name='sse4.2'",
            "policy='require' name='aes'",
        ],
    ),
    ("-boot dc -hda /a.img", &["<boot dev='cdrom'/>", "<boot dev='hd'/>", "/a.img"]),
    ("-boot order=n,menu=on", &["<boot dev='network'/>", "<bootmenu enable='yes'/>"]),
    (
        "-kernel /k -initrd /i -append 'root=/dev/vda console=ttyS0'",
        &["<kernel>/k<", "<initrd>/i<", "<cmdline>root=/dev/vda console=ttyS0<"],
    ),
    (
        "-hda /a,b.img -hdd /d.img -cdrom /c.iso -fda /f.img",
        &[
            "file='/a,b.img'",
            "dev='hda' bus='ide'",
            "file='/d.img'",
            "dev='hdd'",
            "bus='1' target='0' unit='1'",
            "device='cdrom'",
            "file='/c.iso'",
            "dev='hdc'",
            "device='floppy'",
            "dev='fda' bus='fdc'",
        ],
    ),
    (
        "-M q35 -hda /a.img -cdrom /c.iso",
        &["dev='sda' bus='sata'", "device='cdrom'", "dev='sdc' bus='sata'", "unit='2'"],
    ),
    ("/disk.img", &["<source file='/disk.img'/>", "dev='hda'"]),
    (
        "-drive file=/d.qcow2,format=qcow2,if=virtio,cache=none,aio=native,discard=unmap,id=d,werror=enospc",
        &[
            "type='qcow2' cache='none' error_policy='enospace' io='native' discard='unmap'",
            "file='/d.qcow2'",
            "dev='vda' bus='virtio'",
        ],
    ),
    (
        "-drive file=/dev/sdb,if=ide,index=2,media=disk,readonly=on",
        &["type='block' device='disk'", "dev='/dev/sdb'", "dev='hdc'", "<readonly/>"],
    ),
    (
        "-drive if=none,id=a,file=/a -device virtio-blk-pci,drive=a,serial=X1,bootindex=1 -device virtio-scsi-pci,id=s \
      -drive id=b,if=none,file=/b,snapshot=on -device '{\"driver\":\"scsi-hd\",\"bus\":\"s.0\",\"drive\":\"b\",\"lun\":1,\"scsi-id\":2}'",
        &[
            "dev='vda' bus='virtio'",
            "<serial>X1</serial>",
            "<boot order='1'/>",
            "dev='sda' bus='scsi'",
            "<transient/>",
            "target='2' unit='1'",
            "<controller type='scsi' index='0' model='virtio-scsi'/>",
        ],
    ),
    (
        "-blockdev driver=file,filename=/i.qcow2,node-name=f -blockdev driver=qcow2,file=f,node-name=q -device virtio-blk-pci,drive=q",
        &["type='qcow2'", "<source file='/i.qcow2'/>"],
    ),
    (
        "-blockdev driver=qcow2,node-name=q,file.driver=file,file.filename=/i.qcow2 -device ide-hd,drive=q,bus=ide.1",
        &["type='qcow2'", "dev='hdc' bus='ide'"],
    ),
    (
        "-drive if=pflash,format=raw,readonly=on,file=/CODE.fd -drive if=pflash,format=raw,file=/VARS.fd",
        &["<loader readonly='yes' type='pflash'>/CODE.fd</loader>", "<nvram>/VARS.fd</nvram>"],
    ),
    ("-bios /b.rom", &["<loader type='rom'>/b.rom</loader>"]),
    (
        "-net nic,model=virtio,macaddr=52:54:00:00:00:01 -net user",
        &["type='user'", "52:54:00:00:00:01", "<model type='virtio'/>"],
    ),
    ("-net none", &["<emulator>", "<memballoon model='none'/>"]),
    (
        "-nic tap,model=virtio-net-pci,ifname=tap3,script=no,downscript=no",
        &["<interface type='ethernet'>", "<target dev='tap3' managed='no'/>", "<model type='virtio'/>"],
    ),
    (
        "-nic bridge,br=virbr0,mac=52:54:00:00:00:02",
        &["<interface type='bridge'>", "52:54:00:00:00:02", "bridge='virbr0'"],
    ),
    ("-netdev user,id=n -device rtl8139,netdev=n", &["type='user'", "<model type='rtl8139'/>"]),
    (
        "-netdev tap,id=n,vhost=on,ifname=t0,script=no,downscript=no -device virtio-net-pci,netdev=n,mac=52:54:00:00:00:03,id=net7",
        &["type='ethernet'", "52:54:00:00:00:03", "dev='t0'", "<driver name='vhost'/>"],
    ),
    ("-serial pty -parallel null", &["<serial type='pty'>", "<parallel type='null'>"]),
    (
        "-serial unix:/s.sock,server,nowait -serial tcp:127.0.0.1:4000,server=on,wait=off -serial file:/log -serial telnet:h:1",
        &[
            "<serial type='unix'>",
            "mode='bind' path='/s.sock'",
            "<serial type='tcp'>",
            "host='127.0.0.1' service='4000'",
            "<serial type='file'>",
            "path='/log'",
            "<serial type='tcp'>",
            "mode='connect' host='h' service='1'",
            "telnet",
        ],
    ),
    ("-serial mon:stdio -nographic", &["<serial type='stdio'>"]),
    (
        "-chardev socket,path=/ga,server=on,wait=off,id=ga -device virtio-serial -device virtserialport,chardev=ga,name=org.qemu.guest_agent.0",
        &[
            "type='virtio-serial'",
            "<channel type='unix'>",
            "mode='bind' path='/ga'",
            "name='org.qemu.guest_agent.0'",
        ],
    ),
    ("-chardev pty,id=c -device isa-serial,chardev=c,id=s7", &["<serial type='pty'>"]),
    (
        "-vnc :1 -vga std -k de",
        &["<graphics type='vnc' port='5901' autoport='no' listen='0.0.0.0' keymap='de'>", "type='vga'"],
    ),
    ("-vnc unix:/v.sock,share=force-shared", &["socket='/v.sock'", "sharePolicy='force-shared'"]),
    ("-display vnc=127.0.0.1:0,websocket=5700", &["port='5900'", "websocket='5700'", "listen='127.0.0.1'"]),
    (
        "-spice port=5930,disable-ticketing=on,addr=127.0.0.1 -vga qxl",
        &["<graphics type='spice' port='5930'", "type='qxl'"],
    ),
    ("-display none -vga none", &["<memballoon model='none'/>"]),
    ("-display sdl -vga cirrus", &["<graphics type='sdl'", "type='cirrus'"]),
    ("-usb -usbdevice tablet", &["model='piix3-uhci'", "<input type='tablet' bus='usb'"]),
    (
        "-device qemu-xhci,id=x -device usb-tablet,bus=x.0,port=1",
        &["model='qemu-xhci'", "<input type='tablet' bus='usb'>", "<address type='usb' bus='0' port='1'/>"],
    ),
    ("-soundhw hda,ac97", &["<sound model='ich6'/>", "<sound model='ac97'/>"]),
    (
        "-audiodev pa,id=snd0 -device ich9-intel-hda,id=h -device hda-output,audiodev=snd0",
        &[
            "<sound model='ich9'>",
            "<codec type='output'/>",
            "<audio id='1'/>",
            "<audio id='1' type='pulseaudio'",
        ],
    ),
    (
        "-rtc base=localtime,clock=vm,driftfix=slew",
        &["<clock offset='localtime'>", "<timer name='rtc' tickpolicy='catchup' track='guest'/>"],
    ),
    ("-rtc base=2001-09-09T01:46:40", &["offset='absolute' start='1000000000'"]),
    (
        "-smbios type=1,manufacturer=A,,B,serial=7",
        &["<entry name='manufacturer'>A,B</entry>", "<entry name='serial'>7</entry>"],
    ),
    (
        "-no-reboot -no-shutdown -S -daemonize -sandbox on -msg timestamp=on",
        &["<on_reboot>destroy</on_reboot>"],
    ),
    ("-device i6300esb -watchdog-action poweroff", &["<watchdog model='i6300esb' action='poweroff'/>"]),
    (
        "-object rng-random,id=r,filename=/dev/random -device virtio-rng-pci,rng=r",
        &["<rng model='virtio'>", "/dev/random"],
    ),
    ("-device virtio-balloon", &["<memballoon model='virtio'/>"]),
    ("-monitor stdio", &["<memballoon model='none'/>"]),
    (
        "-global PIIX4_PM.disable_s3=1 -overcommit mem-lock=on",
        &["<locked/>", "<suspend-to-mem enabled='no'/>"],
    ),
    (
        "-M q35 -device pcie-root-port,id=rp,chassis=1 -device e1000e,bus=rp,netdev=n -netdev user,id=n",
        &[
            "model='pcie-root-port'",
            "<address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>",
        ],
    ),
];

#[test]
fn what_people_write_becomes_a_definition() {
    for (line, expected) in LINES {
        let xml = xml_of(line);
        let mut rest = xml.as_str();
        for piece in *expected {
            let at = rest.find(piece).unwrap_or_else(|| panic!("{line}: no {piece} in order in\n{xml}"));
            rest = &rest[at + piece.len()..];
        }
        let allowed = usize::from(expected.contains(&"'-name'"));
        assert_eq!(extras(line).len(), 2 * allowed, "{line}\n{xml}");
    }
}

/// A line, and all of what is passed on as it is.
const PASSED_ON: &[(&str, &[&str])] = &[
    ("-icount shift=7", &["-icount", "shift=7"]),
    ("-D /log -d guest_errors", &["-D", "/log", "-d", "guest_errors"]),
    ("-pidfile /p", &["-pidfile", "/p"]),
    ("-device edu,id=e", &["-device", "edu,id=e"]),
    // One unknown option keeps all of it out, and what it refers to.
    (
        "-drive file=/a,if=none,id=a,iops=7 -device virtio-blk-pci,drive=a",
        &["-drive", "file=/a,if=none,id=a,iops=7", "-device", "virtio-blk-pci,drive=a"],
    ),
    (
        "-netdev user,id=n,hostfwd=tcp::2222-:22 -device e1000,netdev=n",
        &["-netdev", "user,id=n,hostfwd=tcp::2222-:22", "-device", "e1000,netdev=n"],
    ),
    ("-nic user,hostfwd=tcp::1-:1", &["-nic", "user,hostfwd=tcp::1-:1"]),
    ("-net nic -net nic -net user", &["-net", "nic", "-net", "nic", "-net", "user"]),
    ("-drive file=nbd://h/x", &["-drive", "file=nbd://h/x"]),
    ("-machine q35,nvdimm=on,accel=kvm", &["-machine", "nvdimm=on"]),
    ("-boot once=d,menu=on", &["-boot", "once=d"]),
    ("-display gtk,gl=on", &["-display", "gtk,gl=on"]),
    ("-qmp unix:/q,server=on,wait=off", &["-qmp", "unix:/q,server=on,wait=off"]),
    (
        "-chardev socket,id=m,path=/m,server=on,wait=off -mon m,mode=control",
        &["-chardev", "socket,id=m,path=/m,server=on,wait=off", "-mon", "m,mode=control"],
    ),
    ("-serial unix:/s,server", &["-serial", "unix:/s,server"]),
    ("-cpu qemu64,model-id=x", &["-cpu", "qemu64,model-id=x"]),
    ("-smp 2,modules=2", &["-smp", "2,modules=2"]),
    // Numbers that fit nowhere.
    ("-rtc base=9223372036854775807-12-31T00:00:00", &["-rtc", "base=9223372036854775807-12-31T00:00:00"]),
    (
        "-rtc base=2020-01-01T9223372036854775807:00:00",
        &["-rtc", "base=2020-01-01T9223372036854775807:00:00"],
    ),
    ("-drive file=/a,bus=4294967295", &["-drive", "file=/a,bus=4294967295"]),
    // A thread whose name is not a daemon's.
    (
        "-object iothread,id=mine -drive file=/a,if=none,id=a -device virtio-blk-pci,drive=a,iothread=mine",
        &[
            "-object",
            "iothread,id=mine",
            "-drive",
            "file=/a,if=none,id=a",
            "-device",
            "virtio-blk-pci,drive=a,iothread=mine",
        ],
    ),
    ("-readconfig /missing", &["-readconfig", "/missing"]),
    ("-object secret,id=s,data=x", &["-object", "secret,id=s,data=x"]),
    (
        "-global e1000.x=1 -fw_cfg name=etc/x,string=1",
        &["-global", "e1000.x=1", "-fw_cfg", "name=etc/x,string=1"],
    ),
];

#[test]
fn what_has_no_place_in_a_definition_is_passed_on() {
    for (line, expected) in PASSED_ON {
        assert_eq!(extras(line), *expected, "{line}");
    }
}

#[test]
fn surroundings_fill_in_what_the_line_leaves_open() {
    let line = "A=1 qemu-system-x86_64 -hda disk.img -serial pty -readconfig c -monitor unix:m,server,nowait -qmp unix:q,server";
    let invocation = Invocation::parse(line).unwrap();
    assert_eq!(invocation.config_files(), ["c"]);
    let surroundings = Surroundings {
        directory: Some("/home/me".into()),
        ptys: vec![("serial0".to_owned(), "/dev/pts/7".to_owned())],
        kvm: Some(true),
        files: vec![("c".to_owned(), "[memory]\n size = \"1G\"\n".to_owned())],
        name: "qemu-1".to_owned(),
    };
    let native = convert(&invocation, &surroundings).unwrap();
    for piece in ["type='kvm'", "qemu-1", "1048576", "/home/me/disk.img", "/dev/pts/7", "name='A' value='1'"]
    {
        assert!(native.xml.contains(piece), "{piece} in\n{}", native.xml);
    }
    let places: Vec<_> = native.monitors.iter().map(|it| (it.mode, &it.place)).collect();
    let unix = |path: &str| MonitorPlace::Unix(path.into());
    assert_eq!(
        places,
        [(MonitorMode::Control, &unix("/home/me/q")), (MonitorMode::Readline, &unix("/home/me/m"))]
    );
}
