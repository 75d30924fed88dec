//! Secrets: definitions, values, events.

use std::sync::Arc;

use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;

use crate::drivers::secret::event::SecretEventId;
use crate::drivers::secret::{Value, reference};
use crate::error::{Error, Origin, Result};
use crate::rpc::access::about;
use crate::rpc::convert;
use crate::rpc::router::{Call, Routes};
use crate::util::uuid::Uuid;

pub fn routes(r: &mut Routes) {
    r.on::<ConnectNumOfSecrets>(num_of_secrets);
    r.on::<ConnectListSecrets>(list_secrets);
    r.on::<ConnectListAllSecrets>(list_all);
    r.on::<SecretLookupByUuid>(lookup_by_uuid);
    r.on::<SecretLookupByUsage>(lookup_by_usage);
    r.on::<SecretDefineXml>(define);
    r.on::<SecretUndefine>(undefine);
    r.on::<SecretGetXmlDesc>(get_xml_desc);
    r.on::<SecretSetValue>(set_value);
    r.on::<SecretGetValue>(get_value);
    r.on::<ConnectSecretEventRegisterAny>(register_events);
    r.on::<ConnectSecretEventDeregisterAny>(deregister_events);
}

fn wire(secret: &crate::conf::secret::Secret) -> Secret {
    convert::secret(&reference(secret))
}

/// The secrets that the client may see.
async fn visible(call: &Call, flags: u32) -> Result<Vec<Arc<crate::conf::secret::Secret>>> {
    Ok(call.visible(call.drivers.secrets.list_all(flags)?, |secret| about::secret(secret)).await)
}

async fn num_of_secrets(call: Call, (): ()) -> Result<ConnectNumOfSecretsRet> {
    let num = i32::try_from(visible(&call, 0).await?.len()).unwrap_or(i32::MAX);
    Ok(ConnectNumOfSecretsRet { num })
}

async fn list_secrets(call: Call, args: ConnectListSecretsArgs) -> Result<ConnectListSecretsRet> {
    let secrets = visible(&call, 0).await?;
    let uuids = secrets.iter().map(|secret| secret.uuid.to_string());
    let uuids = uuids.take(usize::try_from(args.maxuuids).unwrap_or(0)).collect();
    Ok(ConnectListSecretsRet { uuids })
}

async fn list_all(call: Call, args: ConnectListAllSecretsArgs) -> Result<ConnectListAllSecretsRet> {
    let found = visible(&call, args.flags).await?;
    let ret = u32::try_from(found.len()).unwrap_or(u32::MAX);
    let wanted = found.iter().filter(|_| args.need_results != 0);
    Ok(ConnectListAllSecretsRet { secrets: wanted.map(|secret| wire(secret)).collect(), ret })
}

async fn lookup_by_uuid(call: Call, args: SecretLookupByUuidArgs) -> Result<SecretLookupByUuidRet> {
    let secret = call.drivers.secrets.by_uuid(Uuid(args.uuid))?;
    Ok(SecretLookupByUuidRet { secret: wire(&secret) })
}

async fn lookup_by_usage(call: Call, args: SecretLookupByUsageArgs) -> Result<SecretLookupByUsageRet> {
    let secret = call.drivers.secrets.by_usage(args.usage_type, &args.usage_id)?;
    Ok(SecretLookupByUsageRet { secret: wire(&secret) })
}

async fn define(call: Call, args: SecretDefineXmlArgs) -> Result<SecretDefineXmlRet> {
    let secret = call.drivers.secrets.define(&args.xml, args.flags).await?;
    Ok(SecretDefineXmlRet { secret: wire(&secret) })
}

async fn undefine(call: Call, args: SecretUndefineArgs) -> Result<()> {
    call.drivers.secrets.undefine(Uuid(args.secret.uuid)).await
}

async fn get_xml_desc(call: Call, args: SecretGetXmlDescArgs) -> Result<SecretGetXmlDescRet> {
    let xml = call.drivers.secrets.xml(Uuid(args.secret.uuid), args.flags)?;
    Ok(SecretGetXmlDescRet { xml })
}

async fn set_value(call: Call, mut args: SecretSetValueArgs) -> Result<()> {
    if args.value.is_empty() {
        let sentence = "value in virSecretSetValue must not be NULL";
        return Err(
            Error::refused_argument("virSecretSetValue", "value", sentence).from_origin(Origin::SECRET)
        );
    }
    call.drivers
        .secrets
        .set_value(Uuid(args.secret.uuid), Value::new(std::mem::take(&mut args.value)), args.flags)
        .await
}

async fn get_value(call: Call, args: SecretGetValueArgs) -> Result<SecretGetValueRet> {
    let value = call.drivers.secrets.value(Uuid(args.secret.uuid), args.flags)?;
    Ok(SecretGetValueRet { value: value.to_vec() })
}

async fn register_events(
    call: Call,
    args: ConnectSecretEventRegisterAnyArgs,
) -> Result<ConnectSecretEventRegisterAnyRet> {
    let id = SecretEventId::from_number(args.event_id).ok_or_else(|| {
        let sentence = format!("unsupported secret event ID {}", args.event_id);
        Error::internal_error(sentence).from_origin(Origin::RPC)
    })?;
    let secret = args.secret.map(|secret| Uuid(secret.uuid));
    let callback_id = call.client.subscriptions.register_secret(&call.drivers, id, secret)?;
    Ok(ConnectSecretEventRegisterAnyRet { callback_id })
}

async fn deregister_events(call: Call, args: ConnectSecretEventDeregisterAnyArgs) -> Result<()> {
    call.client.subscriptions.deregister_secret(&call.drivers, args.callback_id)
}
