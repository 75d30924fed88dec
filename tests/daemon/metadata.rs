//! What clients keep with a domain: title, description, elements of their own.

use ferrovirt_compat::halting;

use crate::daemon;

#[test]
fn titles_and_descriptions_are_changed_where_asked() {
    let daemon = daemon();
    daemon.define(&halting("tiny"));
    daemon.ok(&["desc", "tiny", "--title", "Mail server"]);
    daemon.ok(&["desc", "tiny", "for the whole house"]);
    assert_eq!(daemon.ok(&["desc", "tiny", "--title"]).trim(), "Mail server");
    let error = daemon.virsh(&["desc", "tiny", "--live", "soon"]).fails();
    assert!(error.contains("domain is not running"), "{error}");
    daemon.ok(&["start", "tiny"]);
    daemon.ok(&["desc", "tiny", "--live", "only now"]);
    assert_eq!(daemon.ok(&["desc", "tiny"]).trim(), "only now");
    assert_eq!(daemon.ok(&["desc", "tiny", "--config"]).trim(), "for the whole house");
    daemon.ok(&["desc", "tiny", "--config", "--live", ""]);
    for which in [&["dumpxml", "tiny"][..], &["dumpxml", "tiny", "--inactive"]] {
        assert!(!daemon.ok(which).contains("<description>"));
    }
}

#[test]
fn a_programs_element_goes_and_comes_without_its_namespace() {
    let mut daemon = daemon();
    let uri = "http://example.org/owner";
    daemon.define(&halting("tiny"));
    daemon.ok(&["metadata", "tiny", uri, "--key", "own", "--set", "<who id='7'><name>Ada</name></who>"]);
    daemon.ok(&["metadata", "tiny", "urn:b", "--key", "b", "--set", "<b/>"]);
    let there = "<own:who xmlns:own=\"http://example.org/owner\" id=\"7\">\n      <own:name>Ada</own:name>";
    assert!(daemon.ok(&["dumpxml", "tiny"]).contains(there));
    let back = "<who id=\"7\">\n  <name>Ada</name>\n</who>";
    assert_eq!(daemon.ok(&["metadata", "tiny", uri]).trim(), back);
    daemon.terminate();
    daemon.restart();
    assert_eq!(daemon.ok(&["metadata", "tiny", uri]).trim(), back);
    daemon.ok(&["metadata", "tiny", "urn:b", "--key", "c", "--set", "<second/>"]);
    assert_eq!(daemon.ok(&["metadata", "tiny", "urn:b"]).trim(), "<second/>");
    let error = daemon.virsh(&["metadata", "tiny", uri, "--key", "a b", "--set", "<x/>"]).fails();
    assert!(error.contains("failed to validate prefix for a new XML namespace"), "{error}");
    for uri in [uri, "urn:b"] {
        daemon.ok(&["metadata", "tiny", uri, "--remove"]);
    }
    assert!(!daemon.ok(&["dumpxml", "tiny"]).contains("metadata"));
}

#[test]
fn subscribers_hear_of_changed_metadata() {
    let daemon = daemon();
    daemon.define(&halting("tiny"));
    let mut events = daemon.python_beside(
        "tell = lambda conn, domain, kind, uri, opaque: print(domain.name(), kind, uri)\n\
         conn.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, tell, None)\n\
         print('listening')\n\
         run_events()",
    );
    events.expect("listening");
    daemon.ok(&["desc", "tiny", "--title", "x"]);
    events.expect("tiny 1 None");
    daemon.ok(&["metadata", "tiny", "urn:b", "--key", "b", "--set", "<b/>"]);
    events.expect("tiny 2 urn:b");
}

#[test]
fn an_unknown_kind_of_metadata_is_named() {
    let daemon = daemon();
    daemon.define(&halting("tiny"));
    for call in ["d.metadata(9, None)", "d.setMetadata(9, 'x', None, None)"] {
        let error = daemon.python(&format!("d = conn.lookupByName('tiny')\n{call}")).fails();
        assert!(error.contains("invalid argument: unknown metadata type '9'"), "{call}: {error}");
    }
}

#[test]
fn metadata_keep_the_namespaces_that_are_declared_around_them() {
    let daemon = daemon();
    // As Python's ElementTree writes what it has read: all namespaces at the root.
    let xml = halting("guest")
        .xml()
        .replace("<domain ", "<domain xmlns:ns0='urn:p' xmlns:a='urn:a' xmlns:b='urn:b' ");
    let metadata = "<metadata xmlns:m='urn:m'><ns0:info a:x='1'><ns0:plan/></ns0:info><m:y/>\
                    <k:z xmlns:k='urn:k'><a:in/></k:z></metadata>";
    let xml = xml.replace("<memory", &format!("{metadata}<memory"));
    daemon.with_xml(&xml, |file| daemon.ok(&["define", file]));
    let printed = daemon.ok(&["dumpxml", "guest"]);
    assert!(
        printed.contains("<metadata xmlns:m=\"urn:m\" xmlns:ns0=\"urn:p\" xmlns:a=\"urn:a\">"),
        "{printed}"
    );
    daemon.with_xml(&printed, |file| daemon.ok(&["define", file]));
    assert_eq!(daemon.ok(&["dumpxml", "guest"]), printed);
    for (uri, expected) in [
        ("urn:p", "<info xmlns:a=\"urn:a\" a:x=\"1\">\n  <plan/>\n</info>"),
        ("urn:k", "<z xmlns:a=\"urn:a\">\n  <a:in/>\n</z>"),
    ] {
        assert_eq!(daemon.ok(&["metadata", "guest", uri]).trim(), expected);
    }
}
