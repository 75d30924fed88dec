//! How a client shows who it is; the only calls before that.

use std::sync::Arc;

use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;

use crate::error::Result;
use crate::rpc::auth::identity::Identity;
use crate::rpc::auth::sasl::{Answer, Asks, Layer, Protection, SaslError, Session};
use crate::rpc::auth::{Authentication, OutOfOrder, SaslRules, refusal};
use crate::rpc::router::{Call, Routes};
use crate::rpc::session::{Peer, Rights};

/// `REMOTE_AUTH_SASL_DATA_MAX`
const MAX_DATA: usize = 65536;
/// The weakest encryption that counts as one, whatever the configuration says: what Kerberos has at least.
const WEAKEST: u32 = 56;

pub fn routes(r: &mut Routes) {
    r.on::<AuthList>(list);
    r.on::<AuthSaslInit>(sasl_init);
    r.on::<AuthSaslStart>(sasl_start);
    r.on::<AuthSaslStep>(sasl_step);
    r.on::<AuthPolkit>(polkit);
}

/// Why somebody is not let in, for the log.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{0}")]
    Sasl(#[from] SaslError),
    #[error("a step out of order")]
    OutOfOrder,
    #[error("the library takes too long")]
    Slow,
    #[error("an answer of {0} bytes is too long")]
    TooLong(usize),
    #[error("negotiated SSF {0} was not strong enough")]
    Weak(u32),
    #[error("SASL client identity '{0}' not allowed by ACL")]
    NotAllowed(String),
}

impl From<OutOfOrder> for Refused {
    fn from(_: OutOfOrder) -> Self {
        Self::OutOfOrder
    }
}

async fn list(call: Call, (): ()) -> Result<AuthListRet> {
    let kind = match &call.client.authentication {
        _ if call.client.is_authenticated() => AuthType::NONE,
        Authentication::None | Authentication::Certificate => AuthType::NONE,
        Authentication::Sasl(_) => AuthType::SASL,
        Authentication::Polkit(_) => AuthType::POLKIT,
    };
    Ok(AuthListRet { types: vec![kind] })
}

/// What the client is told; the log has the reason, and a client that fails too often is let go.
fn refuse<T>(call: &Call, reason: &Refused) -> Result<T> {
    tracing::warn!(%reason, "authentication failed");
    if call.client.login.refuse() {
        call.client.close_after_calls();
    }
    Err(refusal())
}

fn rules(call: &Call) -> Option<Arc<SaslRules>> {
    match &call.client.authentication {
        Authentication::Sasl(rules) if !call.client.is_authenticated() => Some(Arc::clone(rules)),
        _ => None,
    }
}

async fn sasl_init(call: Call, (): ()) -> Result<AuthSaslInitRet> {
    match init(&call).await {
        Ok(mechlist) => Ok(AuthSaslInitRet { mechlist }),
        Err(reason) => refuse(&call, &reason),
    }
}

async fn init(call: &Call) -> std::result::Result<String, Refused> {
    let rules = rules(call).ok_or(Refused::OutOfOrder)?;
    call.client.login.begin()?;
    let (protection, address) = match call.client.peer {
        Peer::Unix(_) => (Protection::Secure { bits: None }, None),
        Peer::Tls { address, key_bits, .. } => (Protection::Secure { bits: Some(key_bits) }, Some(address)),
        Peer::Tcp { address } => (Protection::Open { min_strength: rules.min_strength }, Some(address)),
    };
    let opening = rules.beside(Asks::Nobody, move || {
        let mut session = Session::open(protection, address)?;
        session.mechanisms().map(|mechanisms| (session, mechanisms))
    });
    let (session, mechanisms) = opening.await.ok_or(Refused::Slow)??;
    call.client.login.wait(session);
    Ok(mechanisms)
}

async fn sasl_start(call: Call, args: AuthSaslStartArgs) -> Result<AuthSaslStartRet> {
    let asks = Asks::of(&args.mech);
    match advance(&call, Some(asks), move |session| session.start(&args.mech, given(args.nil, &args.data)))
        .await
    {
        Ok(Answer { data, is_complete }) => {
            let (nil, data) = answered(data);
            Ok(AuthSaslStartRet { complete: is_complete.into(), nil, data })
        }
        Err(reason) => refuse(&call, &reason),
    }
}

async fn sasl_step(call: Call, args: AuthSaslStepArgs) -> Result<AuthSaslStepRet> {
    match advance(&call, None, move |session| session.step(given(args.nil, &args.data))).await {
        Ok(Answer { data, is_complete }) => {
            let (nil, data) = answered(data);
            Ok(AuthSaslStepRet { complete: is_complete.into(), nil, data })
        }
        Err(reason) => refuse(&call, &reason),
    }
}

/// No data is not the same as empty data.
fn given(nil: i32, data: &[u8]) -> Option<&[u8]> {
    (nil == 0).then_some(data)
}

fn answered(data: Option<Vec<u8>>) -> (i32, Vec<u8>) {
    (data.is_none().into(), data.unwrap_or_default())
}

/// `asks` is what the mechanism may do that has just been chosen.
async fn advance(
    call: &Call,
    asks: Option<Asks>,
    step: impl FnOnce(&mut Session) -> std::result::Result<Answer, SaslError> + Send + 'static,
) -> std::result::Result<Answer, Refused> {
    let rules = rules(call).ok_or(Refused::OutOfOrder)?;
    let mut session = call.client.login.resume()?;
    let asks = asks.unwrap_or(session.asks());
    let stepping = rules.beside(asks, move || step(&mut session).map(|answer| (session, answer)));
    let (session, answer) = stepping.await.ok_or(Refused::Slow)??;
    let length = answer.data.as_ref().map_or(0, Vec::len);
    if length > MAX_DATA {
        return Err(Refused::TooLong(length));
    }
    match answer.is_complete {
        true => admit(call, &rules, session)?,
        false => call.client.login.wait(session),
    }
    Ok(answer)
}

/// The client is who it says; may it come in?
fn admit(call: &Call, rules: &SaslRules, mut session: Session) -> std::result::Result<(), Refused> {
    let client = &call.client;
    let name = session.user()?;
    if !rules.allows(&name) {
        return Err(Refused::NotAllowed(name));
    }
    if !client.peer.is_secure() {
        let strength = session.strength()?;
        if strength < WEAKEST {
            return Err(Refused::Weak(strength));
        }
        // What follows the reply is encrypted, whatever happens first.
        client.outbox.protect_after(call.serial, Layer::new(session)?);
    }
    let identity = Identity { sasl_name: Some(name.into()), ..(*client.identity()).clone() };
    client.set_identity(identity);
    tracing::info!("authenticated");
    client.authenticate();
    Ok(())
}

async fn polkit(call: Call, (): ()) -> Result<AuthPolkitRet> {
    let client = &call.client;
    let (Authentication::Polkit(polkit), Peer::Unix(Some(process)), false) =
        (&client.authentication, &client.peer, client.is_authenticated())
    else {
        return refuse(&call, &Refused::OutOfOrder);
    };
    if client.login.begin().is_err() {
        return refuse(&call, &Refused::OutOfOrder);
    }
    let rights = if client.is_read_only() { Rights::ReadOnly } else { Rights::ReadWrite };
    if let Err(error) = polkit.check(process, rights, client.leaves()).await {
        tracing::warn!(%error, "polkit does not let a client in");
        if client.login.refuse() {
            client.close_after_calls();
        }
        return Err(error);
    }
    tracing::info!("polkit lets a client in");
    client.authenticate();
    Ok(AuthPolkitRet { complete: 1 })
}
