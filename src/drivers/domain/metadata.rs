//! Titles, descriptions and other programs' elements: what a client may change of any domain, running or not.

use std::sync::Arc;

use super::event::{DomainEvent, MetadataKind};
use super::flags::Impact;
use super::reads::{persistent, running, unknown_metadata};
use super::{Domains, blocking};
use crate::conf::domain::Domain;
use crate::conf::xml::Metadata;
use crate::error::{Error, Result};
use crate::qemu::job::{DomainHandle, DomainObject, Modify};

/// What is to be in place of what there is. Without a text it is removed.
#[derive(Debug)]
pub struct NewMetadata {
    pub kind: i32,
    pub text: Option<String>,
    /// The prefix and the namespace of a program's own element.
    pub prefix: Option<String>,
    pub uri: Option<String>,
}

impl Domains {
    /// Changes the running guest's metadata, its definition's, or both.
    pub async fn set_metadata(
        self: &Arc<Self>,
        mut domain: DomainHandle,
        new: NewMetadata,
        flags: u32,
    ) -> Result<()> {
        let impact = Impact::of(flags, "qemuDomainSetMetadata")?;
        let kind = MetadataKind::from_number(new.kind).ok_or_else(|| unknown_metadata(new.kind))?;
        let object = Arc::clone(domain.object());
        let _job = domain.begin::<Modify>().await?;
        let domains = Arc::clone(self);
        blocking(move || domains.set_metadata_now(&object, kind, &new, impact)).await
    }

    fn set_metadata_now(
        &self,
        object: &DomainObject,
        kind: MetadataKind,
        new: &NewMetadata,
        impact: Impact,
    ) -> Result<()> {
        let configuration = object.configure();
        let state = configuration.state();
        self.check_there(&state)?;
        let impact = impact.on(&state);
        let mut inactive = None;
        if impact.contains(Impact::LIVE) {
            running(&state)?;
        }
        if impact.contains(Impact::CONFIG) {
            let mut definition = Domain::clone(persistent(&state)?);
            apply(&mut definition, kind, new)?;
            self.definitions.save(&definition).map_err(|error| {
                Error::io(format_args!("cannot save the definition of domain '{}'", state.name), error)
            })?;
            inactive = Some(Arc::new(definition));
        }
        configuration.update(
            |state| {
                if let Some(live) = state.live.as_mut().filter(|_| impact.contains(Impact::LIVE)) {
                    apply(Arc::make_mut(live), kind, new)?;
                }
                if let Some(definition) = inactive {
                    state.inactive = Some(definition);
                }
                Ok(())
            },
            |state, changed: &Result<()>| {
                if changed.is_ok() {
                    self.save_status(state);
                    self.publish(state, DomainEvent::MetadataChange { kind, uri: new.uri.clone() });
                }
            },
        )
    }
}

fn apply(definition: &mut Domain, kind: MetadataKind, new: &NewMetadata) -> Result<()> {
    let text = || new.text.as_deref().filter(|text| !text.is_empty()).map(Box::from);
    match kind {
        MetadataKind::Description => definition.description = text(),
        MetadataKind::Title => definition.title = text(),
        MetadataKind::Element => {
            let uri = new.uri.as_deref().unwrap_or_default();
            let old = definition.metadata.as_ref();
            definition.metadata = match &new.text {
                Some(element) => {
                    Metadata::with(old, uri, new.prefix.as_deref().unwrap_or_default(), element)?
                }
                None => Metadata::without(old, uri)?,
            };
        }
    }
    Ok(())
}
