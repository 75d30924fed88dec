//! What a guest's QEMU is told for a migration, and what it is told afterwards.

use super::request::{MigrateFlags, Request};
use super::settings::Side;
use crate::drivers::domain::Domains;
use crate::drivers::domain::devices::read_master_key;
use crate::error::{Error, Result};
use crate::qemu::job::{AsyncJob, AsyncOp, Live};
use crate::qemu::migrate::{self, CREDENTIALS, Credentials, Endpoint, Keys, MigrateError, Settings};
use crate::qemu::monitor::MigrationParameters;

impl Domains {
    /// Prepares a QEMU for one migration; answers what it had been told before. `host` is to whom the other end of the
    /// stream belongs, where QEMU does not see it.
    pub(super) async fn tell_qemu<O: AsyncOp>(
        &self,
        job: &mut AsyncJob<O>,
        (side, request): (Side, &Request),
        mut settings: Settings,
        host: Option<&str>,
    ) -> Result<Box<MigrationParameters>> {
        let nested = job.nested().await?;
        let live = nested.live()?;
        let before = Box::new(migrate::parameters(&live).await?);
        let parameters = &mut settings.parameters;
        if request.has(MigrateFlags::TLS) {
            if before.tls_creds.is_none() {
                let sentence = "TLS migration is not supported with this QEMU binary";
                return Err(Error::operation_unsupported(sentence));
            }
            migrate::add_credentials(&live, &self.credentials(&live, side)?).await?;
            parameters.tls_creds = Some(CREDENTIALS.to_owned());
            let named = request.text("tls.destination").filter(|_| side == Side::Source).or(host);
            // Without a name QEMU takes the one that it connects to.
            parameters.tls_hostname = Some(named.unwrap_or_default().to_owned());
        } else if before.tls_creds.is_some() {
            parameters.tls_creds = Some(String::new());
            parameters.tls_hostname = Some(String::new());
        }
        let told = migrate::configure(&live, &settings).await;
        if told.is_err() && request.has(MigrateFlags::TLS) {
            migrate::remove_credentials(&live).await;
        }
        Ok(told.map(|()| before)?)
    }

    fn credentials(&self, live: &Live<'_>, side: Side) -> Result<Credentials> {
        let Keys { directory, verify, secret } = self.rules.migration.keys(&self.paths.pki);
        let endpoint = match side {
            Side::Source => Endpoint::Client,
            Side::Destination => Endpoint::Server,
        };
        let state = live.state();
        let passphrase = match (secret, state.files()) {
            (Some(secret), Some(files)) => Some(self.storage.seal(secret, &read_master_key(files)?)?),
            _ => None,
        };
        Ok(Credentials { directory, endpoint, verify, passphrase })
    }
}

/// What no later stream is to go by, for a QEMU of which nobody knows what it had been told before.
pub(super) fn nothing_special() -> MigrationParameters {
    MigrationParameters {
        tls_creds: Some(String::new()),
        tls_hostname: Some(String::new()),
        multifd_compression: Some("none".to_owned()),
        ..MigrationParameters::default()
    }
}

/// Tells a QEMU again what it had been told before; nothing of the migration, where that is not known.
pub(super) async fn put_back<O: AsyncOp>(
    job: &mut AsyncJob<O>,
    before: Option<&MigrationParameters>,
) -> Result<(), MigrateError> {
    let encrypted = |flags: u32| flags & MigrateFlags::TLS.bits() != 0;
    let state = job.state();
    let encrypted = match (&state.operation, &state.interrupted) {
        (Some(underway), _) => encrypted(underway.flags),
        (None, interrupted) => interrupted.as_ref().is_some_and(|job| encrypted(job.flag_bits())),
    };
    let nested = job.nested().await?;
    let live = nested.live()?;
    migrate::forget(&live).await;
    migrate::configure(
        &live,
        &Settings { parameters: before.cloned().unwrap_or_default(), ..Settings::default() },
    )
    .await?;
    if encrypted {
        migrate::remove_credentials(&live).await;
    }
    Ok(())
}
