//! Rules and mistakes of a policy file, and what happens when it changes.

use super::*;
use crate::conf::domain::Domain;
use crate::drivers::storage::event::PoolRef;
use crate::rpc::auth::identity::Identity;
use crate::rpc::session::Peer;

fn policy(text: &str) -> Result<Policy, String> {
    Policy::read(Path::new("/p.toml"), text).map_err(|error| error.to_string())
}

fn nobody() -> Identity {
    Identity::of(&Peer::Unix(None))
}

fn user(uid: u32, groups: &[u32]) -> Who {
    Who::with_groups(Identity { uid: Some(uid), ..nobody() }, groups)
}

fn known(name: Identity) -> Who {
    Who::with_groups(name, &[])
}

fn guest(name: &str, uuid: u8, metadata: &str) -> Object {
    let xml = format!(
        "<domain type='kvm'><name>{name}</name><memory>1024</memory><os><type>hvm</type></os>\
         <metadata>{metadata}</metadata></domain>"
    );
    let definition = Domain::parse(&xml, Form::INACTIVE).unwrap();
    Object::Domain { name: name.into(), uuid: Uuid([uuid; 16]), definition: Some(Arc::new(definition)) }
}

#[test]
fn who_may_do_what_on_which_guests() {
    let policy = policy(
        "[[allow]]\nusers = ['+1', 'root']\npermissions = ['domain:read', 'connect:*']\n\
         [[allow]]\ngroups = ['+50']\npermissions = ['domain:*']\nnames = ['web-*', 'db']\n\
         [[allow]]\nsasl = ['fred@*']\npermissions = ['*']\nuuids = ['09090909-0909-0909-0909-090909090909']\n\
         [[allow]]\nx509 = ['C=GB,*']\npermissions = ['domain:start']\n\
         metadata = { namespace = 'http://x/owner', text = 'web team' }\n\
         [[allow]]\nusers = ['*']\npermissions = ['storage_pool:getattr']\n",
    )
    .unwrap();
    let sasl = known(Identity { sasl_name: Some("fred@host".into()), ..nobody() });
    let certified = known(Identity { x509_name: Some("C=GB,CN=x".into()), ..nobody() });
    let (web, db, other) = (guest("web-1", 1, ""), guest("db", 2, ""), guest("other", 9, ""));
    let owned = guest("owned", 3, "<o:owner xmlns:o='http://x/owner'> web team </o:owner>");
    let lost = guest("lost", 4, "<o:owner xmlns:o='http://x/owner'>web team 2</o:owner>");
    let pool = Object::StoragePool(PoolRef { uuid: Uuid([9; 16]), name: "web-pool".into() });
    for (who, object, permission, allowed) in [
        (&user(1, &[]), &other, "read", true),
        (&user(0, &[]), &other, "read", true),
        (&user(2, &[]), &other, "read", false),
        (&user(1, &[]), &other, "write", false),
        (&user(1, &[]), &Object::Connect, "write", true),
        (&user(5, &[7, 50]), &web, "start", true),
        (&user(5, &[7, 50]), &db, "delete", true),
        (&user(5, &[7, 50]), &other, "start", false),
        (&user(5, &[7, 51]), &web, "start", false),
        // Whoever may do everything with some guests may not do so with the host or other classes.
        (&user(5, &[50]), &Object::Connect, "getattr", false),
        (&sasl, &other, "stop", true),
        (&sasl, &web, "stop", false),
        (&sasl, &pool, "delete", true),
        (&sasl, &Object::Connect, "getattr", false),
        (&certified, &owned, "start", true),
        (&certified, &owned, "stop", false),
        (&certified, &lost, "start", false),
        (&certified, &web, "start", false),
        (&known(nobody()), &pool, "getattr", true),
        (&known(nobody()), &pool, "read", false),
        (&known(nobody()), &web, "getattr", false),
    ] {
        assert_eq!(policy.allows(who, object, permission), allowed, "{who:?} {object} {permission}");
    }
}

#[test]
fn a_mistake_is_named_and_allows_nothing() {
    for (text, words) in [
        ("[[allow]]\nusers = 3\n", "line 2"),
        ("[[allow]]\nuser = ['x']\n", "unknown field `user`"),
        ("[[deny]]\n", "unknown field `deny`"),
        ("[[allow]]\npermissions = ['*']\n", "rule 1: it does not say who"),
        ("[[allow]]\nusers = ['*']\n", "rule 1: it allows nothing"),
        (
            "[[allow]]\nusers = ['*']\npermissions = ['domain:strat']\n",
            "there is no permission 'domain:strat'",
        ),
        ("[[allow]]\nusers = ['nobody-has-this']\npermissions = ['*']\n", "'nobody-has-this'"),
        ("[[allow]]\nusers = ['*']\npermissions = ['*']\nuuids = ['x']\n", "'x' is not a uuid"),
    ] {
        let error = policy(text).unwrap_err();
        assert!(error.contains(words), "{text}: {error}");
    }
    assert!(!policy("").unwrap().allows(&user(0, &[]), &Object::Connect, "getattr"));
}

#[tokio::test]
async fn the_rules_of_before_stay_when_the_new_ones_are_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("p.toml");
    let driver = PolicyDriver::load(path.clone());
    let may = async || driver.allows(&known(nobody()), &Object::Connect, "read").await.unwrap();
    assert!(!may().await, "there is no file");
    let all = "[[allow]]\nusers = ['*']\npermissions = ['*']\n";
    for (text, works, allowed) in [(all, true, true), ("[[allow]]\n", false, true), ("", true, false)] {
        std::fs::write(&path, text).unwrap();
        assert_eq!((driver.reload().is_ok(), may().await), (works, allowed), "{text}");
    }
}
