//! Storage pools and volumes: directories of images, under stock clients.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use ferrovirt_compat::{Daemon, halting, run};

use crate::daemon;

/// A daemon with one active pool, `p`, and its directory.
fn with_pool() -> (Daemon, PathBuf) {
    let daemon = daemon();
    let directory = daemon.path("pool");
    daemon.ok(&["pool-define-as", "p", "dir", "--target", directory.to_str().unwrap()]);
    daemon.ok(&["pool-build", "p"]);
    daemon.ok(&["pool-start", "p"]);
    (daemon, directory)
}

/// A description without what differs from run to run.
fn normal(xml: &str, directory: &str) -> String {
    let mut text = String::new();
    for line in xml.trim().lines() {
        let line = line.trim().replace(directory, "DIR");
        let name = line.trim_start_matches('<').split(['>', ' ']).next().unwrap_or_default().to_owned();
        match &*name {
            "uuid" | "atime" | "mtime" | "ctime" | "capacity" | "allocation" | "available"
                if name != "uuid" || line.len() > 6 =>
            {
                text.push_str(&format!("{name}\n"));
            }
            _ => text.push_str(&format!("{line}\n")),
        }
    }
    text
}

#[test]
fn a_pool_goes_through_its_life_and_its_files_follow() {
    let daemon = daemon();
    let directory = daemon.path("deep/pool");
    let target = directory.to_str().unwrap();
    daemon.ok(&["pool-define-as", "p", "dir", "--target", target]);
    let definition = daemon.path("etc/libvirt/storage/p.xml");
    let state = daemon.path("run/libvirt/storage/p.xml");
    let link = daemon.path("etc/libvirt/storage/autostart/p.xml");
    assert_eq!(fs::metadata(&definition).unwrap().mode() & 0o777, 0o600);
    assert!(fs::read_to_string(&definition).unwrap().contains("\n<pool type='dir'>\n  <name>p</name>\n"));
    let error = daemon.virsh(&["pool-start", "p"]).fails();
    assert!(
        error.contains(&format!("cannot open directory '{target}': No such file or directory")),
        "{error}"
    );
    assert!(!state.exists());
    daemon.ok(&["pool-build", "p"]);
    assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o777, 0o711);
    daemon.ok(&["pool-start", "p"]);
    assert!(fs::read_to_string(&state).unwrap().contains("<poolstate>\n  <pool type='dir'>\n"));
    assert_eq!(
        normal(&daemon.ok(&["pool-dumpxml", "p"]), target),
        "<pool type='dir'>\n<name>p</name>\nuuid\ncapacity\nallocation\navailable\n<source>\n</source>\n<target>\n\
         <path>DIR</path>\n<permissions>\n<mode>0711</mode>\n<owner>0</owner>\n<group>0</group>\n</permissions>\n</target>\n</pool>\n"
    );
    daemon.ok(&["pool-autostart", "p"]);
    assert!(fs::read_link(&link).is_ok());
    assert!(daemon.ok(&["pool-info", "p"]).contains("Autostart:      yes"));
    for (arguments, sentence) in [
        (vec!["pool-start", "p"], "Requested operation is not valid: storage pool 'p' is already active"),
        (vec!["pool-undefine", "p"], "Requested operation is not valid: storage pool 'p' is still active"),
        (vec!["pool-delete", "p"], "Requested operation is not valid: storage pool 'p' is still active"),
        (vec!["pool-build", "p"], "Requested operation is not valid: storage pool 'p' is already active"),
    ] {
        let error = daemon.virsh(&arguments).fails();
        assert!(error.contains(sentence), "{error}");
    }
    daemon.ok(&["pool-destroy", "p"]);
    assert!(!state.exists());
    fs::write(directory.join("image"), "precious").unwrap();
    let error = daemon.virsh(&["pool-delete", "p"]).fails();
    assert!(error.contains(&format!("failed to remove pool '{target}': Directory not empty")), "{error}");
    daemon.ok(&["pool-undefine", "p"]);
    assert!(!definition.exists() && fs::symlink_metadata(&link).is_err());
    assert_eq!(fs::read_to_string(directory.join("image")).unwrap(), "precious");
    let error = daemon.virsh(&["pool-info", "p"]).fails();
    assert!(error.contains("Storage pool not found: no storage pool with matching name 'p'"), "{error}");
}

#[test]
fn a_pool_that_is_only_created_is_gone_when_it_is_destroyed() {
    let daemon = daemon();
    let target = daemon.path("q").display().to_string();
    let error = daemon.virsh(&["pool-create-as", "q", "dir", "--target", &target]).fails();
    assert!(error.contains("cannot open directory"), "{error}");
    assert_eq!(daemon.ok(&["pool-list", "--all", "--name"]).trim(), "");
    daemon.ok(&["pool-create-as", "q", "dir", "--target", &target, "--build"]);
    assert!(daemon.ok(&["pool-info", "q"]).contains("Persistent:     no"));
    let error = daemon.virsh(&["pool-autostart", "q"]).fails();
    assert!(error.contains("internal error: pool has no config file"), "{error}");
    daemon.ok(&["pool-destroy", "q"]);
    assert_eq!(daemon.ok(&["pool-list", "--all", "--name"]).trim(), "");
    assert!(PathBuf::from(&target).is_dir());
}

#[test]
fn pools_survive_the_daemon_and_autostart_is_for_the_first_one() {
    let (mut daemon, directory) = with_pool();
    let other = daemon.path("other").display().to_string();
    daemon.ok(&["pool-define-as", "idle", "dir", "--target", &other]);
    daemon.ok(&[
        "pool-create-as",
        "fleeting",
        "dir",
        "--target",
        &daemon.path("f").display().to_string(),
        "--build",
    ]);
    daemon.ok(&["vol-create-as", "p", "image", "1M"]);
    let before = daemon.ok(&["pool-dumpxml", "p"]);
    daemon.terminate();
    daemon.restart();
    let uuid = |xml: &str| xml.lines().find(|line| line.contains("<uuid>")).map(str::to_owned);
    assert_eq!(uuid(&daemon.ok(&["pool-dumpxml", "p"])), uuid(&before));
    assert!(directory.join("image").exists());
    assert_eq!(
        daemon.ok(&["vol-path", "--pool", "p", "image"]).trim(),
        directory.join("image").to_str().unwrap()
    );
    let names = daemon.ok(&["pool-list", "--name"]);
    assert_eq!(names.split_whitespace().collect::<Vec<_>>(), ["fleeting", "p"]);
    assert!(daemon.ok(&["pool-info", "fleeting"]).contains("Persistent:     no"));
    assert!(daemon.ok(&["pool-info", "idle"]).contains("State:          inactive"));
}

#[test]
fn definitions_that_make_no_sense_are_refused_in_libvirts_words() {
    let (daemon, directory) = with_pool();
    let target = directory.to_str().unwrap();
    let pool = |name: &str, rest: &str| {
        format!("<pool type='dir'><name>{name}</name>{rest}<target><path>{target}x</path></target></pool>")
    };
    let uuid = daemon.ok(&["pool-uuid", "p"]).trim().to_owned();
    let cases = [
        (pool("a/b", ""), "XML error: name a/b cannot contain '/'".to_owned()),
        (pool("a\nb", ""), "invalid char in name".to_owned()),
        (
            pool("b", &format!("<uuid>{uuid}</uuid>")),
            format!("operation failed: pool 'p' is already defined with uuid {uuid}"),
        ),
        (pool("p", ""), format!("operation failed: pool 'p' already exists with uuid {uuid}")),
        (pool("b", "<uuid>x</uuid>"), "XML error: malformed uuid element".to_owned()),
        (
            pool("b", "").replace("x</path>", "</path>"),
            "operation failed: Storage source conflict with pool: 'p'".to_owned(),
        ),
        (
            "<pool type='dir'><name>x</name></pool>".to_owned(),
            "XML error: missing storage pool target path".to_owned(),
        ),
        (
            "<pool><name>x</name></pool>".to_owned(),
            "XML error: Missing required attribute 'type' in element 'pool'".to_owned(),
        ),
        (
            pool("x", "").replace("'dir'", "'what'"),
            "XML error: Invalid value for attribute 'type' in element 'pool': 'what'.".to_owned(),
        ),
        (
            pool("x", "").replace("'dir'", "'fs'"),
            "XML error: missing storage pool source device name".to_owned(),
        ),
        (
            pool("x", "").replace("'dir'", "'vstorage'"),
            "internal error: missing backend for pool type 13 (vstorage)".to_owned(),
        ),
    ];
    for (xml, sentence) in cases {
        let error = daemon.with_xml(&xml, |file| daemon.virsh(&["pool-define", file]).fails());
        assert!(error.contains(&sentence), "{xml}: {error}");
    }
    assert_eq!(daemon.ok(&["pool-list", "--all", "--name"]).trim(), "p");
}

#[test]
fn lists_lookups_and_filters_agree() {
    let (daemon, directory) = with_pool();
    daemon.ok(&["pool-define-as", "off", "dir", "--target", &daemon.path("off").display().to_string()]);
    daemon.ok(&["vol-create-as", "p", "image", "1M"]);
    let out = daemon
        .python(&format!(
            "p = conn.storagePoolLookupByName('p')\n\
             print(conn.numOfStoragePools(), conn.listStoragePools(), conn.numOfDefinedStoragePools(), conn.listDefinedStoragePools())\n\
             L = libvirt\n\
             for flags in (0, L.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE, L.VIR_CONNECT_LIST_STORAGE_POOLS_INACTIVE, L.VIR_CONNECT_LIST_STORAGE_POOLS_TRANSIENT,\n\
             \x20             L.VIR_CONNECT_LIST_STORAGE_POOLS_DIR, L.VIR_CONNECT_LIST_STORAGE_POOLS_FS | L.VIR_CONNECT_LIST_STORAGE_POOLS_NETFS):\n\
             \x20   print(sorted(it.name() for it in conn.listAllStoragePools(flags)))\n\
             print(p.info()[0], p.isActive(), p.isPersistent(), p.autostart(), p.numOfVolumes(), p.listVolumes())\n\
             v = conn.storageVolLookupByPath('{target}//image')\n\
             print(v.name(), v.key() == v.path() == '{target}/image', conn.storageVolLookupByKey(v.key()).name(), v.storagePoolLookupByVolume().name())\n\
             print(conn.storagePoolLookupByTargetPath('{target}/').name(), conn.storagePoolLookupByUUIDString(p.UUIDString()).name(), [it.name() for it in p.listAllVolumes()])\n\
             def refused(call):\n\
             \x20   try: call()\n\
             \x20   except L.libvirtError as e: print(e.get_error_code(), e.get_error_domain(), e.get_error_message())\n\
             refused(lambda: conn.storagePoolLookupByName('none'))\n\
             refused(lambda: conn.storagePoolLookupByTargetPath('/none'))\n\
             refused(lambda: conn.storageVolLookupByPath('/none/'))\n\
             refused(lambda: conn.storageVolLookupByKey('/none'))\n\
             refused(lambda: p.storageVolLookupByName('none'))\n\
             refused(lambda: conn.storagePoolLookupByName('off').listVolumes())\n\
             refused(lambda: p.createXML('<volume><name>image</name><capacity>1</capacity></volume>'))",
            target = directory.display()
        ))
        .ok();
    assert_eq!(
        out.lines().collect::<Vec<_>>(),
        [
            "1 ['p'] 1 ['off']",
            "['off', 'p']",
            "['p']",
            "['off']",
            "[]",
            "['off', 'p']",
            "[]",
            "2 1 1 0 1 ['image']",
            "image True image p",
            "p p ['image']",
            "49 18 Storage pool not found: no storage pool with matching name 'none'",
            "49 18 Storage pool not found: no storage pool with matching target path '/none'",
            "50 18 Storage volume not found: no storage vol with matching path '/none/' (/none)",
            "50 18 Storage volume not found: no storage vol with matching key /none",
            "50 18 Storage volume not found: no storage vol with matching name 'none'",
            "55 18 Requested operation is not valid: storage pool 'off' is not active",
            "90 18 storage volume 'image' exists already",
        ]
    );
}

#[test]
fn images_are_made_and_described() {
    let (daemon, directory) = with_pool();
    let target = directory.to_str().unwrap();
    daemon.ok(&["vol-create-as", "p", "base.qcow2", "8M", "--format", "qcow2"]);
    daemon.ok(&[
        "vol-create-as",
        "p",
        "top.qcow2",
        "8M",
        "--format",
        "qcow2",
        "--backing-vol",
        "base.qcow2",
        "--backing-vol-format",
        "qcow2",
    ]);
    daemon.ok(&["vol-create-as", "p", "full.raw", "1M"]);
    daemon.ok(&["vol-create-as", "p", "sparse.raw", "1M", "--allocation", "0"]);
    daemon.ok(&["vol-create-as", "p", "meta.qcow2", "8M", "--format", "qcow2", "--prealloc-metadata"]);
    let info = run("qemu-img", &["info", directory.join("top.qcow2").to_str().unwrap()]).ok();
    assert!(
        info.contains(&format!("backing file: {target}/base.qcow2"))
            && info.contains("backing file format: qcow2"),
        "{info}"
    );
    let blocks = |name: &str| fs::metadata(directory.join(name)).unwrap().blocks() * 512;
    assert_eq!((blocks("full.raw"), blocks("sparse.raw")), (1 << 20, 0));
    let permissions = "<permissions>\n<mode>0600</mode>\n<owner>0</owner>\n<group>0</group>\n</permissions>\n\
                       <timestamps>\natime\nmtime\nctime\n<btime>0</btime>\n</timestamps>\n";
    let features = "<compat>1.1</compat>\n<clusterSize unit='B'>65536</clusterSize>\n<features/>\n";
    daemon.ok(&["pool-refresh", "p"]);
    assert_eq!(
        normal(&daemon.ok(&["vol-dumpxml", "--pool", "p", "top.qcow2"]), target),
        format!(
            "<volume type='file'>\n<name>top.qcow2</name>\n<key>DIR/top.qcow2</key>\ncapacity\nallocation\n\
             <physical unit='bytes'>196616</physical>\n<target>\n<path>DIR/top.qcow2</path>\n<format type='qcow2'/>\n\
             {permissions}{features}</target>\n<backingStore>\n<path>DIR/base.qcow2</path>\n<format type='qcow2'/>\n\
             {permissions}</backingStore>\n</volume>\n"
        )
    );
}

#[test]
fn images_are_resized_cloned_converted_wiped_and_deleted() {
    let (daemon, directory) = with_pool();
    daemon.ok(&["vol-create-as", "p", "base.qcow2", "8M", "--format", "qcow2"]);
    daemon.ok(&["vol-create-as", "p", "full.raw", "1M"]);
    daemon.ok(&["vol-create-as", "p", "sparse.raw", "1M", "--allocation", "0"]);
    daemon.ok(&["vol-resize", "--pool", "p", "sparse.raw", "2M"]);
    daemon.ok(&["vol-resize", "--pool", "p", "sparse.raw", "1M", "--delta"]);
    assert!(
        daemon
            .ok(&["vol-info", "--pool", "p", "sparse.raw", "--bytes"])
            .contains("Capacity:       3145728 bytes")
    );
    let error = daemon.virsh(&["vol-resize", "--pool", "p", "sparse.raw", "500"]).fails();
    assert!(
        error
            .contains("Can't shrink capacity below current capacity unless shrink flag explicitly specified"),
        "{error}"
    );
    daemon.ok(&["vol-resize", "--pool", "p", "base.qcow2", "16M"]);
    daemon.ok(&["vol-resize", "--pool", "p", "base.qcow2", "4M", "--shrink"]);
    fs::File::options()
        .write(true)
        .open(directory.join("full.raw"))
        .unwrap()
        .write_all_at(b"payload", 4096)
        .unwrap();
    daemon.ok(&["vol-clone", "--pool", "p", "full.raw", "copy.raw"]);
    daemon.ok(&["vol-create-as", "p", "image.qcow2", "1M", "--format", "qcow2"]);
    let said = daemon.virsh(&["vol-clone", "--pool", "p", "image.qcow2", "no.qcow2", "--reflink"]).fails();
    assert!(said.contains("unsupported flags (0x2) in function storageBackendCreateQemuImg"), "{said}");
    daemon.ok(&["vol-delete", "image.qcow2", "p"]);
    assert_eq!(fs::read(directory.join("copy.raw")).unwrap(), fs::read(directory.join("full.raw")).unwrap());
    let converted = "<volume><name>copy.qcow2</name><capacity>0</capacity><target><format type='qcow2'/></target></volume>";
    daemon.with_xml(converted, |file| {
        daemon.ok(&["vol-create-from", "p", file, "full.raw", "--inputpool", "p"])
    });
    let same = [
        "compare",
        directory.join("full.raw").to_str().unwrap(),
        directory.join("copy.qcow2").to_str().unwrap(),
    ]
    .map(str::to_owned);
    assert!(run("qemu-img", &[&same[0], &same[1], &same[2]]).ok().contains("identical"));
    daemon.ok(&["vol-wipe", "--pool", "p", "full.raw"]);
    assert!(fs::read(directory.join("full.raw")).unwrap().iter().all(|byte| *byte == 0));
    daemon.ok(&["vol-delete", "--pool", "p", "full.raw"]);
    assert!(!directory.join("full.raw").exists());
    let error = daemon.virsh(&["vol-info", "--pool", "p", "full.raw"]).fails();
    assert!(error.contains("no storage vol with matching"), "{error}");
}

#[test]
fn what_cannot_be_made_leaves_nothing_behind() {
    let (daemon, directory) = with_pool();
    fs::write(directory.join("there"), "precious").unwrap();
    let volume = |name: &str, rest: &str| {
        format!("<volume><name>{name}</name><capacity>1048576</capacity>{rest}</volume>")
    };
    let qcow2 = |rest: &str| format!("<target><format type='qcow2'/>{rest}</target>");
    let long = "x".repeat(300);
    let cases = [
        (volume("../x", ""), "volume name '../x' cannot contain '/'"),
        (volume("..", ""), "already exists"),
        (volume("there", ""), "already exists"),
        (volume(&long, ""), "File name too long"),
        (volume("x", "").replace("1048576", "99999999999999999"), "cannot extend file"),
        (volume("x", "<allocation unit='PiB'>1</allocation>"), ""),
        (
            volume("x", &format!("{}<backingStore><path>/none</path></backingStore>", qcow2(""))),
            "inaccessible backing store volume /none: No such file or directory",
        ),
        (
            volume("x", "<backingStore><path>/none</path></backingStore>"),
            "backing storage not supported for raw volumes",
        ),
        (
            volume("x", &qcow2("<compat>1;1</compat>")),
            "XML error: forbidden characters in 'compat' attribute",
        ),
        (
            volume("x", &qcow2("<features><magic/></features>")),
            "unsupported configuration: unsupported feature magic",
        ),
        (volume("x", &qcow2("<clusterSize unit='B'>3</clusterSize>")), "unexpected exit status 1"),
        (
            volume("x", "<target><format type='what'/></target>"),
            "unsupported configuration: unknown volume format type what",
        ),
        ("<volume><name>x</name></volume>".to_owned(), "XML error: missing capacity element"),
    ];
    for (xml, sentence) in cases {
        let error = daemon.with_xml(&xml, |file| daemon.virsh(&["vol-create", "p", file]).fails());
        assert!(error.contains(sentence), "{xml}: {error}");
        let left: Vec<_> = fs::read_dir(&directory).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(left, ["there"], "{xml}");
        assert_eq!(daemon.ok(&["vol-list", "p"]).trim(), "", "{xml}");
    }
    assert_eq!(fs::read_to_string(directory.join("there")).unwrap(), "precious");
}

#[test]
fn a_refresh_finds_what_others_put_into_the_directory() {
    let (daemon, directory) = with_pool();
    let at = |name: &str| directory.join(name);
    fs::create_dir(at("folder")).unwrap();
    fs::write(at("precious"), "years of work").unwrap();
    symlink(at("none"), at("dangling")).unwrap();
    symlink(at("precious"), at("link")).unwrap();
    run("mkfifo", &[at("pipe").to_str().unwrap()]).ok();
    // A header of sizes and offsets without sense.
    let mut bomb = vec![0xff; 512];
    bomb[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    fs::write(at("bomb"), bomb).unwrap();
    run(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-u",
            "-b",
            "loop",
            "-F",
            "qcow2",
            at("loop").to_str().unwrap(),
            "1M",
        ],
    )
    .ok();
    daemon.ok(&["pool-refresh", "p"]);
    let list = daemon.ok(&["vol-list", "p"]);
    let names: Vec<_> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["bomb", "folder", "link", "loop", "precious"]);
    assert!(daemon.ok(&["vol-dumpxml", "--pool", "p", "loop"]).contains("<backingStore>"));
    assert!(daemon.ok(&["vol-dumpxml", "--pool", "p", "folder"]).starts_with("<volume type='dir'>"));
    // What a volume's record or a link stands for is not deleted with it.
    daemon.ok(&["vol-delete", "--pool", "p", "link"]);
    assert_eq!(fs::read_to_string(at("precious")).unwrap(), "years of work");
    fs::remove_file(at("loop")).unwrap();
    fs::write(at("precious"), "more work").unwrap();
    daemon.ok(&["pool-refresh", "p"]);
    assert!(!daemon.ok(&["vol-list", "p"]).contains("loop"));
    assert!(
        daemon.ok(&["vol-info", "--pool", "p", "precious", "--bytes"]).contains("Capacity:       9 bytes")
    );
}

#[test]
fn volumes_travel_as_streams_with_offsets_lengths_and_holes() {
    let (daemon, directory) = with_pool();
    let local = daemon.path("local");
    let (local, back) = (local.to_str().unwrap().to_owned(), daemon.path("back").display().to_string());
    let file = fs::File::create(&local).unwrap();
    file.set_len(24 << 20).unwrap();
    let pattern: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).take(5 << 20).collect();
    file.write_all_at(&pattern, 8 << 20).unwrap();
    daemon.ok(&["vol-create-as", "p", "v", "24M", "--allocation", "0"]);
    daemon.ok(&["vol-upload", "--pool", "p", "v", &local, "--sparse"]);
    let volume = directory.join("v");
    assert_eq!(fs::read(&volume).unwrap(), fs::read(&local).unwrap());
    assert!(fs::metadata(&volume).unwrap().blocks() * 512 <= 6 << 20);
    daemon.ok(&["vol-download", "--pool", "p", "v", &back, "--sparse"]);
    assert_eq!(fs::read(&back).unwrap(), fs::read(&local).unwrap());
    assert!(fs::metadata(&back).unwrap().blocks() * 512 <= 6 << 20);
    daemon.ok(&["vol-download", "--pool", "p", "v", &back, "--offset", "9437184", "--length", "1000001"]);
    assert_eq!(fs::read(&back).unwrap(), &pattern[1 << 20..][..1_000_001]);
    fs::write(&local, "replaced").unwrap();
    daemon.ok(&["vol-upload", "--pool", "p", "v", &local, "--offset", "1048576"]);
    let all = fs::read(&volume).unwrap();
    assert_eq!((all.len(), &all[1 << 20..][..8]), (24 << 20, &b"replaced"[..]));
    // A client that leaves in the middle keeps nobody from the volume.
    let client = daemon.python(
        "stream = conn.newStream(0)\nconn.storagePoolLookupByName('p').storageVolLookupByName('v').upload(stream, 0, 0, 0)\n\
         stream.send(b'x' * 100000)\nos._exit(0)",
    );
    client.ok();
    ferrovirt_compat::eventually("the volume is free", || {
        daemon.virsh(&["vol-resize", "--pool", "p", "v", "25M"]).success.then_some(())
    });
}

#[test]
fn watchers_hear_what_happens_to_pools() {
    let (daemon, _) = with_pool();
    let mut watcher = daemon.python_beside(
        "kinds = libvirt.VIR_STORAGE_POOL_EVENT_ID_LIFECYCLE, libvirt.VIR_STORAGE_POOL_EVENT_ID_REFRESH\n\
         conn.storagePoolEventRegisterAny(None, kinds[0], lambda c, p, event, detail, o: print('lifecycle', p.name(), event), None)\n\
         conn.storagePoolEventRegisterAny(None, kinds[1], lambda c, p, o: print('refresh', p.name()), None)\n\
         print('watching')\nrun_events()",
    );
    watcher.expect("watching\n");
    daemon.ok(&["pool-refresh", "p"]);
    watcher.expect("refresh p\n");
    let target = daemon.path("q").display().to_string();
    daemon.ok(&["pool-define-as", "q", "dir", "--target", &target]);
    for command in ["pool-build", "pool-start", "pool-destroy", "pool-delete", "pool-undefine"] {
        daemon.ok(&[command, "q"]);
    }
    // Defined, built, started, stopped, deleted, undefined.
    for event in [0, 4, 2, 3, 5, 1] {
        watcher.expect(&format!("lifecycle q {event}\n"));
    }
}

#[test]
fn capabilities_name_every_type_and_its_formats() {
    let daemon = daemon();
    let text = daemon.ok(&["pool-capabilities"]);
    for part in [
        "<pool type='dir' supported='yes'>\n    <volOptions>\n      <defaultFormat type='raw'/>\n      <enum name='targetFormatType'>\n        <value>none</value>",
        "<pool type='netfs' supported='yes'>\n    <poolOptions>\n      <defaultFormat type='auto'/>",
        "<pool type='zfs' supported='no'>\n  </pool>\n",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let error = daemon.virsh(&["find-storage-pool-sources", "netfs"]).fails();
    assert!(error.contains("invalid argument: hostname must be specified for netfs sources"), "{error}");
    let error = daemon.virsh(&["find-storage-pool-sources", "dir"]).fails();
    assert!(error.contains("pool type 'dir' does not support source discovery"), "{error}");
}

#[test]
fn a_reader_may_look_and_not_touch() {
    let (daemon, directory) = with_pool();
    daemon.ok(&["vol-create-as", "p", "v", "1M"]);
    let virsh = |arguments: &[&str]| {
        let uri = daemon.read_only_uri();
        run("virsh", &[&["-q", "-c", &uri], arguments].concat())
    };
    assert!(virsh(&["vol-dumpxml", "--pool", "p", "v"]).ok().contains("<name>v</name>"));
    for arguments in [
        vec!["pool-destroy", "p"],
        vec!["pool-refresh", "p"],
        vec!["vol-delete", "--pool", "p", "v"],
        vec!["vol-download", "--pool", "p", "v", "/dev/null"],
    ] {
        let error = virsh(&arguments).fails();
        assert!(
            error.contains("read only access prevents") || error.contains("read-only"),
            "{arguments:?}: {error}"
        );
    }
    assert!(directory.join("v").exists());
    let mode = fs::metadata(directory.join("v")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_guest_runs_from_a_volume_that_its_definition_names() {
    let (daemon, directory) = with_pool();
    daemon.ok(&["vol-create-as", "p", "v.qcow2", "1M", "--format", "qcow2"]);
    let disk = "<disk type='volume'><driver name='qemu' type='qcow2'/><source pool='p' volume='v.qcow2'/><target dev='vda' bus='virtio'/></disk>";
    let guest = halting("tiny").device(disk);
    daemon.run(&guest);
    assert!(daemon.ok(&["dumpxml", "tiny"]).contains("<source pool='p' volume='v.qcow2' index='1'/>"));
    let pid = daemon.qemu_pid("tiny");
    let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(arguments.contains(directory.join("v.qcow2").to_str().unwrap()), "{arguments}");
    daemon.ok(&["destroy", "tiny"]);
    daemon.ok(&["pool-destroy", "p"]);
    let error = daemon.virsh(&["start", "tiny"]).fails();
    let sentence = "unsupported configuration: storage pool 'p' containing volume 'v.qcow2' is not active";
    assert!(error.contains(sentence), "{error}");
    daemon.ok(&["pool-start", "p"]);
    daemon.ok(&["vol-delete", "--pool", "p", "v.qcow2"]);
    let error = daemon.virsh(&["start", "tiny"]).fails();
    assert!(
        error.contains("Storage volume not found: no storage vol with matching name 'v.qcow2'"),
        "{error}"
    );
}
