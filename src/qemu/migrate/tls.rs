//! What a QEMU shows the other one of an encrypted stream, and what it asks of it.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::MigrateError;
use crate::qemu::command::Sealed;
use crate::qemu::job::Live;

/// Under which QEMU has it, as libvirt calls it.
pub const CREDENTIALS: &str = "objlibvirt_migrate_tls0";
const PASSPHRASE: &str = "libvirt_migrate-secret0";

/// Who calls, and who is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    Client,
    Server,
}

#[derive(Debug)]
pub struct Credentials {
    pub directory: PathBuf,
    pub endpoint: Endpoint,
    /// Whether a client needs a certificate; a server always does.
    pub verify: bool,
    pub passphrase: Option<Sealed>,
}

impl Credentials {
    fn object(&self) -> Value {
        let (endpoint, verify) = match self.endpoint {
            Endpoint::Client => ("client", true),
            Endpoint::Server => ("server", self.verify),
        };
        let mut object = json!({
            "qom-type": "tls-creds-x509", "id": CREDENTIALS, "dir": self.directory.to_string_lossy(),
            "endpoint": endpoint, "verify-peer": verify,
        });
        if let (Some(_), Value::Object(object)) = (&self.passphrase, &mut object) {
            object.insert("passwordid".to_owned(), PASSPHRASE.into());
        }
        object
    }
}

/// Gives them to a QEMU, which looks at the files at once.
pub async fn add_credentials(live: &Live<'_>, credentials: &Credentials) -> Result<(), MigrateError> {
    // A daemon that died may have left some.
    remove_credentials(live).await;
    if let Some(sealed) = &credentials.passphrase {
        let secret = json!({
            "qom-type": "secret", "id": PASSPHRASE, "keyid": "masterKey0", "format": "base64",
            "data": sealed.data, "iv": sealed.vector,
        });
        live.monitor().execute_value("object-add", Some(secret)).await?;
    }
    let added = live.monitor().execute_value("object-add", Some(credentials.object())).await;
    if added.is_err() {
        remove_credentials(live).await;
    }
    Ok(added.map(drop)?)
}

/// Takes them back, if there are any.
pub async fn remove_credentials(live: &Live<'_>) {
    for id in [CREDENTIALS, PASSPHRASE] {
        let _ = live.monitor().execute_value("object-del", Some(json!({ "id": id }))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_calls_wants_to_know_whom() {
        let mut credentials = Credentials {
            directory: "/k".into(),
            endpoint: Endpoint::Server,
            verify: false,
            passphrase: Some(Sealed::default()),
        };
        let object = credentials.object();
        assert_eq!((&object["verify-peer"], &object["passwordid"]), (&json!(false), &json!(PASSPHRASE)));
        credentials.endpoint = Endpoint::Client;
        let object = credentials.object();
        assert_eq!((&object["verify-peer"], &object["endpoint"]), (&json!(true), &json!("client")));
    }
}
