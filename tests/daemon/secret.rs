//! Secrets: what they are for, their values, and who gets to see those.

use std::fs;
use std::os::unix::fs::MetadataExt;

use ferrovirt_compat::run;

use crate::{daemon, on_upstream};

const UUID: &str = "0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f";

fn secret(attributes: &str, usage: &str) -> String {
    format!("<secret {attributes}><uuid>{UUID}</uuid><description>d</description>{usage}</secret>")
}

const VOLUME: &str = "<usage type='volume'><volume>/v</volume></usage>";

#[test]
fn a_value_is_kept_for_its_user_alone_and_survives_the_daemon() {
    let mut daemon = daemon();
    daemon.with_xml(&secret("", VOLUME), |file| daemon.ok(&["secret-define", file]));
    assert_eq!(
        daemon.ok(&["secret-dumpxml", UUID]).trim(),
        format!(
            "<secret ephemeral='no' private='no'>\n  <uuid>{UUID}</uuid>\n  <description>d</description>\n  \
             <usage type='volume'>\n    <volume>/v</volume>\n  </usage>\n</secret>"
        )
    );
    let error = daemon.virsh(&["secret-get-value", UUID]).fails();
    assert!(error.contains(&format!("Secret not found: secret '{UUID}' does not have a value")), "{error}");
    daemon.ok(&["secret-set-value", UUID, "--base64", "aHVudGVyMg=="]);
    let kept = if on_upstream() { "base64" } else { "aes256cbc" };
    let file = daemon.path(&format!("etc/libvirt/secrets/{UUID}.{kept}"));
    assert_eq!(fs::read_to_string(&file).unwrap() == "aHVudGVyMg==", on_upstream());
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    daemon.terminate();
    daemon.restart();
    assert_eq!(daemon.ok(&["secret-get-value", UUID]).trim(), "aHVudGVyMg==");
    assert!(!daemon.log().contains("hunter2") && !daemon.log().contains("aHVudGVyMg"));
    daemon.ok(&["secret-undefine", UUID]);
    assert!(!file.exists() && !file.with_extension("xml").exists());
    let error = daemon.virsh(&["secret-dumpxml", UUID]).fails();
    assert!(error.contains(&format!("Secret not found: no secret with matching uuid '{UUID}'")), "{error}");
}

#[test]
fn private_ephemeral_and_read_only_each_keep_something_back() {
    let mut daemon = daemon();
    daemon.with_xml(&secret("private='yes' ephemeral='yes'", VOLUME), |file| {
        daemon.ok(&["secret-define", file])
    });
    daemon.ok(&["secret-set-value", UUID, "--base64", "aHVudGVyMg=="]);
    let error = daemon.virsh(&["secret-get-value", UUID]).fails();
    assert!(error.contains("Invalid secret: secret is private"), "{error}");
    let error = daemon.with_xml(&secret("private='no' ephemeral='yes'", VOLUME), |file| {
        daemon.virsh(&["secret-define", file]).fails()
    });
    assert!(error.contains("internal error: cannot change private flag on existing secret"), "{error}");
    assert!(fs::read_dir(daemon.path("etc/libvirt/secrets")).unwrap().next().is_none());
    let uri = daemon.read_only_uri();
    assert!(run("virsh", &["-q", "-c", &uri, "secret-list"]).ok().contains(UUID));
    for call in ["secret-get-value", "secret-undefine"] {
        let error = run("virsh", &["-q", "-c", &uri, call, UUID]).fails();
        assert!(
            error.contains("read only access prevents") || error.contains("read-only"),
            "{call}: {error}"
        );
    }
    daemon.terminate();
    daemon.restart();
    assert_eq!(daemon.ok(&["secret-list"]).trim(), "");
}

#[test]
fn uses_are_found_listed_and_told_apart() {
    let daemon = daemon();
    daemon.with_xml(&secret("", VOLUME), |file| daemon.ok(&["secret-define", file]));
    for (kind, element) in [("ceph", "name"), ("iscsi", "target"), ("tls", "name"), ("vtpm", "name")] {
        let xml = format!(
            "<secret private='yes'><usage type='{kind}'><{element}>of {kind}</{element}></usage></secret>"
        );
        daemon.with_xml(&xml, |file| daemon.ok(&["secret-define", file]));
    }
    let twin = "<secret><usage type='volume'><volume>/v</volume></usage></secret>";
    let error = daemon.with_xml(twin, |file| daemon.virsh(&["secret-define", file]).fails());
    assert!(
        error.contains(&format!("internal error: a secret with UUID {UUID} already defined for use with /v")),
        "{error}"
    );
    let moved = secret("", "<usage type='volume'><volume>/w</volume></usage>");
    let error = daemon.with_xml(&moved, |file| daemon.virsh(&["secret-define", file]).fails());
    assert!(
        error.contains(&format!("a secret with UUID {UUID} is already defined for use with /v")),
        "{error}"
    );
    let out = daemon
        .python(
            "print(conn.numOfSecrets(), len(conn.listSecrets()))\n\
             s = conn.secretLookupByUsage(libvirt.VIR_SECRET_USAGE_TYPE_VOLUME, '/v')\n\
             print(s.UUIDString(), s.usageType(), s.usageID(), conn.secretLookupByUUIDString(s.UUIDString()).usageID())\n\
             print(sorted(it.usageType() for it in conn.listAllSecrets(libvirt.VIR_CONNECT_LIST_SECRETS_PRIVATE)))\n\
             print(len(conn.listAllSecrets(libvirt.VIR_CONNECT_LIST_SECRETS_EPHEMERAL)))\n\
             s.setValue(b'\\0binary\\xff')\n\
             print(s.value())\n\
             try: conn.secretLookupByUsage(libvirt.VIR_SECRET_USAGE_TYPE_CEPH, '/v')\n\
             except libvirt.libvirtError as e: print(e.get_error_code(), e.get_error_domain(), e.get_error_message())",
        )
        .ok();
    assert_eq!(
        out.lines().collect::<Vec<_>>(),
        [
            "5 5",
            &format!("{UUID} 1 /v /v"),
            "[2, 3, 4, 5]",
            "0",
            "b'\\x00binary\\xff'",
            "66 30 Secret not found: no secret with matching usage '/v'",
        ]
    );
}

#[test]
fn watchers_hear_what_happens_to_secrets() {
    let daemon = daemon();
    let mut watcher = daemon.python_beside(
        "kinds = libvirt.VIR_SECRET_EVENT_ID_LIFECYCLE, libvirt.VIR_SECRET_EVENT_ID_VALUE_CHANGED\n\
         conn.secretEventRegisterAny(None, kinds[0], lambda c, s, event, detail, o: print('lifecycle', s.usageID(), event), None)\n\
         conn.secretEventRegisterAny(None, kinds[1], lambda c, s, o: print('value', s.usageID()), None)\n\
         print('watching')\nrun_events()",
    );
    watcher.expect("watching\n");
    daemon.with_xml(&secret("", VOLUME), |file| daemon.ok(&["secret-define", file]));
    daemon.ok(&["secret-set-value", UUID, "--base64", "aHVudGVyMg=="]);
    daemon.ok(&["secret-undefine", UUID]);
    watcher.expect("lifecycle /v 0\nvalue /v\nlifecycle /v 1\n");
}

/// The passphrase of an encrypted volume is in no argument, no environment and no file; `qemu-img` opens what we made.
#[test]
fn an_encrypted_volume_is_made_with_a_secret() {
    let daemon = daemon();
    let directory = daemon.path("pool");
    daemon.ok(&["pool-create-as", "p", "dir", "--target", directory.to_str().unwrap(), "--build"]);
    let image = directory.join("v");
    let usage = format!("<usage type='volume'><volume>{}</volume></usage>", image.display());
    daemon.with_xml(&secret("private='yes'", &usage), |file| daemon.ok(&["secret-define", file]));
    daemon.ok(&["secret-set-value", UUID, "--base64", "aHVudGVyMg=="]);
    let volume = format!(
        "<volume><name>v</name><capacity unit='MiB'>1</capacity><target><format type='raw'/>\
         <encryption format='luks'><secret type='passphrase' uuid='{UUID}'/></encryption></target></volume>"
    );
    daemon.with_xml(&volume, |file| daemon.ok(&["vol-create", "p", file]));
    assert!(fs::read(&image).unwrap().starts_with(b"LUKS\xba\xbe"));
    let options = format!("driver=luks,key-secret=s,file.filename={}", image.display());
    let opened = daemon.path("opened").display().to_string();
    let key = "secret,id=s,data=hunter2";
    run("qemu-img", &["convert", "--object", key, "--image-opts", &options, "-O", "raw", &opened]).ok();
    assert_eq!(fs::metadata(&opened).unwrap().len(), 1 << 20);
    let xml = daemon.ok(&["vol-dumpxml", "--pool", "p", "v"]);
    assert!(xml.contains(&format!("<secret type='passphrase' uuid='{UUID}'/>")), "{xml}");
    assert!(xml.contains("<capacity unit='bytes'>1048576</capacity>"), "{xml}");
    let left = fs::read_dir(daemon.path("run/libvirt/storage")).unwrap();
    assert!(left.flatten().all(|file| !file.file_name().to_string_lossy().contains("secret")));
}

/// Values are encrypted as they are set, and with `encrypt_data = 0` the daemon leaves all of them as an older libvirt
/// reads them.
#[test]
fn values_at_rest_are_encrypted_and_find_the_way_back() {
    if on_upstream() {
        return;
    }
    let mut daemon = daemon();
    daemon.with_xml(&secret("", VOLUME), |file| daemon.ok(&["secret-define", file]));
    let file = |kept: &str| daemon.path(&format!("etc/libvirt/secrets/{UUID}.{kept}"));
    let (plain, encrypted) = (file("base64"), file("aes256cbc"));
    let (key, settings) =
        (daemon.path("var/lib/libvirt/secrets/encryption-key"), daemon.path("etc/libvirt/secret.conf"));
    // As libvirt left it.
    daemon.terminate();
    fs::write(&plain, "aHVudGVyMg==").unwrap();
    daemon.restart();
    assert_eq!(daemon.ok(&["secret-get-value", UUID]).trim(), "aHVudGVyMg==");
    assert!(plain.exists() && !key.exists(), "nobody has set it since");
    daemon.ok(&["secret-set-value", UUID, "--base64", "aHVudGVyMw=="]);
    assert!(!plain.exists() && encrypted.exists());
    let metadata = fs::metadata(&key).unwrap();
    assert_eq!((metadata.len(), metadata.mode() & 0o777), (32, 0o600));
    daemon.terminate();
    daemon.restart();
    assert_eq!(daemon.ok(&["secret-get-value", UUID]).trim(), "aHVudGVyMw==");
    // Without its key the secret is left alone.
    daemon.terminate();
    fs::rename(&key, key.with_extension("away")).unwrap();
    daemon.restart();
    assert_eq!(daemon.ok(&["secret-list"]).trim(), "");
    assert!(daemon.log().contains("cannot read the key of its value") && encrypted.exists());
    daemon.terminate();
    fs::rename(key.with_extension("away"), &key).unwrap();
    fs::write(&settings, "encrypt_data = 0\n").unwrap();
    daemon.restart();
    assert_eq!(daemon.ok(&["secret-get-value", UUID]).trim(), "aHVudGVyMw==");
    assert_eq!(fs::read_to_string(&plain).unwrap(), "aHVudGVyMw==");
    assert!(!encrypted.exists());
    daemon.ok(&["secret-undefine", UUID]);
    assert!(!plain.exists());
}
