//! How much of the network an interface may use.

use std::sync::Arc;

use crate::conf::devices::{Bandwidth, Interface, Rate};
use crate::conf::domain::Domain;
use crate::drivers::domain::Domains;
use crate::drivers::domain::flags::Impact;
use crate::drivers::domain::reads::{persistent, running};
use crate::drivers::domain::stats::single::{STRING_OKAY, interface_named};
use crate::drivers::domain::usage::one_definition;
use crate::drivers::params::{ParamType, Params};
use crate::error::{Error, Result};
use crate::qemu::job::{DomainHandle, Job, Modify, State};
use crate::qemu::traffic;

/// libvirt's name of a number, and its place.
type Field = (&'static str, fn(&mut Rate) -> &mut u64);

const INBOUND: [Field; 4] = [
    ("inbound.average", |rate| &mut rate.average),
    ("inbound.peak", |rate| &mut rate.peak),
    ("inbound.burst", |rate| &mut rate.burst),
    ("inbound.floor", |rate| &mut rate.floor),
];
const OUTBOUND: [Field; 3] = [
    ("outbound.average", |rate| &mut rate.average),
    ("outbound.peak", |rate| &mut rate.peak),
    ("outbound.burst", |rate| &mut rate.burst),
];

/// The limits of one interface, named by its device or its MAC address; 0 is none. Without a name all are none.
pub fn bandwidth(state: &State, interface: Option<&str>, flags: u32) -> Result<Params> {
    let impact = Impact::of(flags & !STRING_OKAY, "qemuDomainGetInterfaceParameters")?;
    let definition = one_definition(state, impact)?;
    let interface = interface.map(|name| interface_named(definition, name)).transpose()?;
    let bandwidth = interface.map(|interface| interface.bandwidth).unwrap_or_default();
    let mut params = Params::default();
    let (mut inbound, mut outbound) =
        (bandwidth.inbound.unwrap_or_default(), bandwidth.outbound.unwrap_or_default());
    let inbound = INBOUND.iter().map(|(name, field)| (name, *field(&mut inbound)));
    let outbound = OUTBOUND.iter().map(|(name, field)| (name, *field(&mut outbound)));
    for (name, limit) in inbound.chain(outbound) {
        params.push(*name, u32::try_from(limit).unwrap_or(u32::MAX));
    }
    Ok(params)
}

/// What a client says of one interface: a direction that it names without a limit has none afterwards.
struct Wanted {
    limits: Bandwidth,
    names_inbound: bool,
    names_outbound: bool,
}

impl Wanted {
    fn of(params: &Params) -> Result<Self> {
        let known: Vec<_> =
            INBOUND.iter().chain(&OUTBOUND).map(|(name, _)| (*name, ParamType::Uint)).collect();
        params.validate(&known)?;
        let rate = |fields: &[Field]| {
            let mut rate = Rate::default();
            for (name, field) in fields {
                *field(&mut rate) = params.uint(name).copied().unwrap_or(0).into();
            }
            rate
        };
        let (inbound, outbound) = (rate(&INBOUND), rate(&OUTBOUND));
        let has = |name| params.get(name).is_some();
        Ok(Self {
            limits: Bandwidth {
                inbound: Some(inbound).filter(|rate| rate.average > 0 || rate.floor > 0),
                outbound: Some(outbound).filter(|rate| rate.average > 0),
            },
            names_inbound: has("inbound.average") || has("inbound.floor"),
            names_outbound: has("outbound.average"),
        })
    }

    /// What an interface has afterwards.
    fn over(&self, old: &Bandwidth) -> Bandwidth {
        let keeps = |named: bool, old: Option<Rate>| old.filter(|_| !named);
        Bandwidth {
            inbound: self.limits.inbound.or(keeps(self.names_inbound, old.inbound)),
            outbound: self.limits.outbound.or(keeps(self.names_outbound, old.outbound)),
        }
    }
}

impl Domains {
    /// `virDomainSetInterfaceParameters`
    pub async fn set_bandwidth(
        self: &Arc<Self>,
        mut domain: DomainHandle,
        interface: String,
        params: Params,
        flags: u32,
    ) -> Result<()> {
        let impact = Impact::of(flags, "qemuDomainSetInterfaceParameters")?;
        let wanted = Wanted::of(&params)?;
        let object = Arc::clone(domain.object());
        let job = domain.begin::<Modify>().await?;
        let state = job.state();
        let impact = impact.on(&state);
        let live = impact.contains(Impact::LIVE).then(|| running(&state)).transpose()?;
        let inactive = impact.contains(Impact::CONFIG).then(|| persistent(&state)).transpose()?;
        for definition in live.into_iter().chain(inactive) {
            let kind = interface_named(definition, &interface)?.kind;
            if !traffic::limits(kind) {
                return Err(Error::config_unsupported(format!(
                    "setting bandwidth on interfaces of type '{kind}' is not implemented yet"
                )));
            }
        }
        if let Some(live) = live {
            let card = interface_named(live, &interface)?;
            self.limit_live(&job, card, wanted.over(&card.bandwidth)).await?;
        }
        if inactive.is_some() {
            let edit = move |definition: &mut Domain| {
                let at = interface_named(definition, &interface)?.clone();
                let cards = definition.devices.interfaces.iter_mut();
                for card in cards.filter(|card| **card == at) {
                    card.bandwidth = wanted.over(&card.bandwidth);
                }
                Ok(())
            };
            self.edit_inactive(&object, edit).await?;
        }
        Ok(())
    }

    /// Limits an interface of a running guest; should that fail, it has its old limits.
    pub(in crate::drivers::domain) async fn limit_live(
        &self,
        job: &Job<'_, Modify>,
        card: &Interface,
        bandwidth: Bandwidth,
    ) -> Result<()> {
        if bandwidth.inbound.is_some_and(|rate| rate.floor > 0) {
            let mac = card.mac.address.map(|mac| mac.to_string()).unwrap_or_default();
            return Err(Error::operation_unsupported(format!(
                "Invalid use of 'floor' on interface with MAC address {mac} - 'floor' is only supported for \
                 interface type 'network' with forward type 'nat', 'route', 'open' or none"
            )));
        }
        if let Some(device) = traffic::device(card) {
            let search_path = self.search_path();
            if let Err(error) = traffic::limit(device, &bandwidth, search_path).await {
                if let Err(again) = traffic::limit(device, &card.bandwidth, search_path).await {
                    tracing::warn!(device, error = %again, "an interface does not get its limits back");
                }
                return Err(error.into());
            }
        }
        let change = |state: &mut State| {
            let cards = state.live.as_mut().map(|live| &mut Arc::make_mut(live).devices.interfaces);
            for it in cards.into_iter().flatten().filter(|it| it.info.alias == card.info.alias) {
                it.bandwidth = bandwidth;
            }
        };
        job.update_then(change, |state, ()| self.save_status(state));
        Ok(())
    }
}
