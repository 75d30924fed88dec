//! The daemon on the other host, to which this one is a client. The only place in `drivers` that speaks the protocol.

use std::io;
use std::time::Duration;

use ferrovirt_protocol::client::{CallError, Client, Stream};
use ferrovirt_protocol::remote::procedure::{
    AuthList, ConnectOpen, ConnectSupportsFeature, DomainMigrateFinish3Params, DomainMigratePrepare3Params,
    DomainMigratePrepareTunnel3Params,
};
use ferrovirt_protocol::remote::{
    AuthType, ConnectOpenArgs, ConnectSupportsFeatureArgs, DomainMigrateFinish3ParamsArgs,
    DomainMigratePrepare3ParamsArgs, DomainMigratePrepareTunnel3ParamsArgs, TypedParam, TypedParamValue,
};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::Outcome;
use super::transport::{Address, Line, Means};
use crate::drivers::params::{ParamValue, Params};
use crate::error::{Code, Error, Origin, Result};
use crate::qemu::migrate::Policy;
use crate::util::process::Child;

const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// How long one call may take; a guest of much memory takes a while to prepare.
const CALL_LIMIT: Duration = Duration::from_secs(600);

/// What the other daemon has to be able to do, by libvirt's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ability {
    PeerToPeer = 4,
    Version3 = 6,
    Keepalive = 10,
    Offline = 12,
    Params = 13,
}

/// Why a call has no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The other daemon says no.
    Refused(Error),
    /// Nobody knows what the other daemon did.
    Lost(Error),
}

impl From<Trouble> for Error {
    fn from(trouble: Trouble) -> Self {
        let (Trouble::Refused(error) | Trouble::Lost(error)) = trouble;
        error
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Remote {
    client: Client,
    pinging: Option<AbortHandle>,
    /// Ends with the connection.
    _helper: Option<Child>,
}

impl Drop for Remote {
    fn drop(&mut self) {
        if let Some(pinging) = &self.pinging {
            pinging.abort();
        }
        self.client.close();
    }
}

impl Remote {
    /// Connects to the daemon that a client named.
    pub(super) async fn open(uri: &str, policy: &Policy, means: Means<'_>) -> Result<Self> {
        let address = Address::parse(uri)?;
        let late = |_| {
            let error = io::Error::from(io::ErrorKind::TimedOut);
            Err(Error::io(format_args!("unable to connect to {address}"), error).from_origin(Origin::RPC))
        };
        let line = timeout(CONNECT_LIMIT, address.connect(means)).await.unwrap_or_else(late)?;
        let ((client, mut events), helper) = match line {
            Line::Unix(stream) => (Client::unix(stream), None),
            Line::Stream(stream, helper) => (Client::new(stream), helper),
        };
        // Nothing is asked to be told; what comes all the same is not kept.
        tokio::spawn(async move { while events.next().await.is_some() {} });
        let client = client.with_timeout(CALL_LIMIT);
        let remote = Self { pinging: ping(client.clone(), policy), client, _helper: helper };
        remote.introduce(address.name).await?;
        Ok(remote)
    }

    async fn introduce(&self, name: String) -> Result<()> {
        let ways = self.client.call::<AuthList>(&()).await.map_err(trouble)?.types;
        if !ways.is_empty() && !ways.contains(&AuthType::NONE) {
            let sentence = "the destination asks for authentication, which this daemon does not do";
            return Err(Error::auth_failed(sentence).from_origin(Origin::RPC));
        }
        // To ask for it is to want it; a daemon without it answers pings as well or says no.
        let _ = self.can(Ability::Keepalive).await;
        let args = ConnectOpenArgs { name: Some(name), flags: 0 };
        Ok(self.client.call::<ConnectOpen>(&args).await.map_err(trouble)?)
    }

    pub(super) async fn can(&self, ability: Ability) -> Result<bool> {
        let args = ConnectSupportsFeatureArgs { feature: ability as i32 };
        let answer = self.client.call::<ConnectSupportsFeature>(&args).await.map_err(trouble)?;
        Ok(answer.supported != 0)
    }

    /// Has a QEMU wait; answers its cookie and where it waits.
    pub(super) async fn prepare(
        &self,
        params: Params,
        flags: u32,
        cookie_in: Vec<u8>,
    ) -> Result<(Vec<u8>, Option<String>), Trouble> {
        let args = DomainMigratePrepare3ParamsArgs { params: wire(params), cookie_in, flags };
        let answer = self.client.call::<DomainMigratePrepare3Params>(&args).await.map_err(trouble)?;
        Ok((answer.cookie_out, answer.uri_out))
    }

    /// The same for a QEMU that gets its guest through this connection.
    pub(super) async fn prepare_tunnel(
        &self,
        params: Params,
        flags: u32,
        cookie_in: Vec<u8>,
    ) -> Result<(Vec<u8>, Stream), Trouble> {
        let args = DomainMigratePrepareTunnel3ParamsArgs { params: wire(params), cookie_in, flags };
        let opened = self.client.open_stream::<DomainMigratePrepareTunnel3Params>(&args).await;
        let (answer, stream) = opened.map_err(trouble)?;
        Ok((answer.cookie_out, stream))
    }

    /// Has the guest run there, or not; answers a cookie if it runs.
    pub(super) async fn finish(
        &self,
        params: Params,
        flags: u32,
        (cookie_in, outcome): (Vec<u8>, Outcome),
    ) -> Result<Vec<u8>, Trouble> {
        let cancelled = i32::from(outcome == Outcome::Canceled);
        let args = DomainMigrateFinish3ParamsArgs { params: wire(params), cookie_in, flags, cancelled };
        let answer = self.client.call::<DomainMigrateFinish3Params>(&args).await.map_err(trouble)?;
        Ok(answer.cookie_out)
    }

    /// Returns when the connection is gone.
    pub(super) async fn closed(&self) -> Error {
        let reason = self.client.closed().await;
        Error::operation_failed(format!("Lost connection to destination host: {reason}"))
    }
}

/// Ends a connection whose other end is silent, unless the host wants it otherwise.
fn ping(client: Client, policy: &Policy) -> Option<AbortHandle> {
    let every = u64::try_from(policy.keepalive_interval).ok().filter(|&seconds| seconds > 0)?;
    let every = Duration::from_secs(every);
    let silence_limit = every * policy.keepalive_count.max(1);
    let pinging = tokio::spawn(async move {
        loop {
            sleep(every).await;
            match timeout(silence_limit, client.ping()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) => return client.close(),
            }
        }
    });
    Some(pinging.abort_handle())
}

fn trouble(error: CallError) -> Trouble {
    match error {
        CallError::Remote(error) => {
            let message = error.message.clone().unwrap_or_default();
            Trouble::Refused(Error::quoted(Code(error.code), Origin(error.domain), &message))
        }
        other => {
            Trouble::Lost(Error::operation_failed(format!("Lost connection to destination host: {other}")))
        }
    }
}

fn wire(params: Params) -> Vec<TypedParam> {
    let value = |value| match value {
        ParamValue::Int(value) => TypedParamValue::Int(value),
        ParamValue::Uint(value) => TypedParamValue::Uint(value),
        ParamValue::Llong(value) => TypedParamValue::Llong(value),
        ParamValue::Ullong(value) => TypedParamValue::Ullong(value),
        ParamValue::Double(value) => TypedParamValue::Double(value),
        ParamValue::Boolean(value) => TypedParamValue::Boolean(value.into()),
        ParamValue::Text(value) => TypedParamValue::String(value),
    };
    params.into_iter().map(|(field, found)| TypedParam { field, value: value(found) }).collect()
}
