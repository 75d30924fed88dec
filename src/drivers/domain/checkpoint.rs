//! Checkpoints: moments from which on QEMU notes what a guest writes, in bitmaps that its images keep.
//!
//! The current one is the leaf: each stands on the one before it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::block_jobs::check_supported;
use super::flags::CallFlags;
use super::reads::{as_defined, running};
use super::start::seconds_since_1970;
use super::{Domains, blocking};
use crate::conf::checkpoint::{Checkpoint, Shown};
use crate::conf::devices::{Disk, StorageFormat};
use crate::conf::moments::{Moment, Moments};
use crate::conf::snapshot::KeptDomain;
use crate::conf::xml::Form;
use crate::drivers::flags::flag_words;
use crate::error::{Error, Result};
use crate::qemu::block::Layers;
use crate::qemu::hotplug::Step;
use crate::qemu::job::{DomainHandle, DomainObject, Live, Modify, State};
use crate::qemu::monitor::{NodeImages, QueryNodeImages, Transaction};

flag_words!(
    /// `virDomainCheckpointCreateFlags`, as far as QEMU has them.
    CheckpointCreateFlags of "qemuCheckpointCreateXML" {
        REDEFINE = 1,
        REDEFINE_VALIDATE = 1 << 2,
    }
    /// `virDomainCheckpointXMLFlags`
    CheckpointXmlFlags of "qemuCheckpointGetXMLDesc" {
        SECURE = 1,
        NO_DOMAIN = 1 << 1,
        SIZE = 1 << 2,
    }
    /// `virDomainCheckpointListFlags`. The first one means the roots of a domain's checkpoints, and all that are below
    /// a checkpoint.
    CheckpointListFlags of "qemuDomainListAllCheckpoints" {
        ROOTS = 1,
        TOPOLOGICAL = 1 << 1,
        LEAVES = 1 << 2,
        NO_LEAVES = 1 << 3,
    }
    /// `virDomainCheckpointDeleteFlags`
    CheckpointDeleteFlags of "qemuCheckpointDelete" {
        CHILDREN = 1,
        METADATA_ONLY = 1 << 1,
        CHILDREN_ONLY = 1 << 2,
    }
);

pub type Checkpoints = Moments<Checkpoint>;

/// Those of a domain, or below one of them; `function` is libvirt's name of the call.
pub fn list(state: &State, from: Option<&str>, flags: u32, function: &'static str) -> Result<Vec<String>> {
    let flags = CheckpointListFlags::accept_in(flags, function)?;
    if let Some(name) = from {
        find(state, name)?;
    }
    let checkpoints = &state.checkpoints;
    let found = match flags.contains(CheckpointListFlags::ROOTS) == from.is_some() {
        true => checkpoints.descendants(from),
        false => checkpoints.children(from).collect(),
    };
    let wanted = |checkpoint: &&Arc<Checkpoint>| {
        let leaf = checkpoints.is_leaf(checkpoint.name());
        let asked = flags & (CheckpointListFlags::LEAVES | CheckpointListFlags::NO_LEAVES);
        let own = if leaf { CheckpointListFlags::LEAVES } else { CheckpointListFlags::NO_LEAVES };
        asked.is_empty() || asked.contains(own)
    };
    Ok(found.into_iter().filter(wanted).map(|checkpoint| checkpoint.name().to_owned()).collect())
}

pub fn find<'a>(state: &'a State, name: &str) -> Result<&'a Arc<Checkpoint>> {
    let missing = || Error::no_domain_checkpoint(format!("no domain checkpoint with matching name '{name}'"));
    state.checkpoints.get(name).ok_or_else(missing)
}

pub fn parent<'a>(state: &'a State, name: &str) -> Result<&'a str> {
    let none = || Error::no_domain_checkpoint(format!("checkpoint '{name}' does not have a parent"));
    find(state, name)?.parent().ok_or_else(none)
}

/// A checkpoint that is about to be: what QEMU is to do for it.
pub(super) struct Planned {
    pub checkpoint: Checkpoint,
    pub actions: Vec<Value>,
}

impl Domains {
    /// `virDomainCheckpointGetXMLDesc`
    pub async fn checkpoint_xml(&self, mut domain: DomainHandle, name: &str, flags: u32) -> Result<String> {
        let flags = CheckpointXmlFlags::accept(flags)?;
        let mut checkpoint = Checkpoint::clone(find(&domain.state(), name)?);
        if flags.contains(CheckpointXmlFlags::SIZE) {
            let job = domain.begin::<Modify>().await?;
            let live = job.live()?;
            let nodes = live.monitor().execute(QueryNodeImages { flat: true }).await?;
            for disk in checkpoint.disks.iter_mut().filter(|disk| disk.is_noted()) {
                let own = running(live.state())?.devices.disks.iter().find(|it| *it.name() == *disk.name);
                disk.size = own.and_then(|own| written_since(&nodes, own, name));
            }
        }
        let form = match flags.contains(CheckpointXmlFlags::SECURE) {
            true => Form::SECURE,
            false => Form::INACTIVE,
        };
        let shown = match flags.contains(CheckpointXmlFlags::NO_DOMAIN) {
            true => Shown::WithoutDomain,
            false => Shown::All,
        };
        Ok(checkpoint.to_xml(form, shown))
    }

    /// `virDomainCheckpointCreateXML`; answers the checkpoint's name.
    pub async fn checkpoint_create(
        self: &Arc<Self>,
        mut domain: DomainHandle,
        xml: &str,
        flags: u32,
    ) -> Result<String> {
        let flags = CheckpointCreateFlags::accept(flags)?;
        let redefines = flags.contains(CheckpointCreateFlags::REDEFINE);
        if !redefines && !domain.state().is_active() {
            return Err(Error::operation_unsupported("cannot create checkpoint for inactive domain"));
        }
        let parsed = if redefines { Checkpoint::parse_made(xml)? } else { Checkpoint::parse(xml)? };
        let object = Arc::clone(domain.object());
        let job = domain.begin::<Modify>().await?;
        if redefines {
            let validates = flags.contains(CheckpointCreateFlags::REDEFINE_VALIDATE);
            let live = if validates { Some(job.live()?) } else { None };
            return self.redefine_checkpoint(&object, live.as_ref(), parsed).await;
        }
        let live = job.live()?;
        let Planned { checkpoint, actions } = plan(live.state(), parsed)?;
        live.monitor().execute(Transaction { actions }).await?;
        let name = checkpoint.name().to_owned();
        self.keep_made(&object, &live, checkpoint).await?;
        Ok(name)
    }

    /// Keeps a checkpoint that QEMU has made; what cannot be written down is not left there either.
    pub(super) async fn keep_made(
        self: &Arc<Self>,
        object: &Arc<DomainObject>,
        live: &Live<'_>,
        checkpoint: Checkpoint,
    ) -> Result<()> {
        let kept = self.keep_checkpoints(object, vec![checkpoint.clone()]).await;
        if kept.is_err()
            && let Err(error) = self.drop_bitmaps(live, &checkpoint).await
        {
            tracing::warn!(checkpoint = checkpoint.name(), %error, "bitmaps of no checkpoint stay behind");
        }
        kept
    }

    async fn redefine_checkpoint(
        self: &Arc<Self>,
        object: &Arc<DomainObject>,
        live: Option<&Live<'_>>,
        mut checkpoint: Checkpoint,
    ) -> Result<String> {
        let state = object.state();
        let name = checkpoint.name().to_owned();
        if let Some(parent) = checkpoint.parent() {
            if parent == name {
                return Err(Error::invalid_arg(format!("cannot set moment {name} as its own parent")));
            }
            if state.checkpoints.get(parent).is_none() {
                return Err(Error::invalid_arg(format!("parent {parent} for moment {name} not found")));
            }
            if state.checkpoints.is_below(parent, &name) {
                return Err(Error::invalid_arg(format!("parent {parent} would create cycle to {name}")));
            }
        }
        match checkpoint.domain.clone() {
            Some(KeptDomain(then)) if then.uuid != state.uuid => {
                let sentence = format!("definition for checkpoint {name} must use uuid {}", state.uuid);
                return Err(Error::invalid_arg(sentence));
            }
            Some(KeptDomain(then)) => checkpoint.align(&then)?,
            None => checkpoint.name_bitmaps(),
        }
        if let Some(live) = live {
            let nodes = live.monitor().execute(QueryNodeImages { flat: true }).await?;
            for disk in checkpoint.disks.iter().filter(|disk| disk.is_noted()) {
                let own = running(live.state())?.devices.disks.iter().find(|it| *it.name() == *disk.name);
                if let Some(own) = own {
                    check_bitmap(&nodes, own, &name)?;
                }
            }
        }
        self.keep_checkpoints(object, vec![checkpoint]).await?;
        Ok(name)
    }

    /// `virDomainCheckpointDelete`
    pub async fn checkpoint_delete(
        self: &Arc<Self>,
        mut domain: DomainHandle,
        name: &str,
        flags: u32,
    ) -> Result<()> {
        let flags = CheckpointDeleteFlags::accept(flags)?;
        let object = Arc::clone(domain.object());
        let job = domain.begin::<Modify>().await?;
        let state = job.state();
        let only_metadata = flags.contains(CheckpointDeleteFlags::METADATA_ONLY);
        if !only_metadata && !state.is_active() {
            return Err(Error::operation_unsupported("cannot delete checkpoint for inactive domain"));
        }
        let checkpoint = find(&state, name)?;
        let mut going: Vec<_> = Vec::new();
        if flags.intersects(CheckpointDeleteFlags::CHILDREN | CheckpointDeleteFlags::CHILDREN_ONLY) {
            going.extend(state.checkpoints.descendants(Some(name)).into_iter().rev().map(Arc::clone));
        }
        if !flags.contains(CheckpointDeleteFlags::CHILDREN_ONLY) {
            going.push(Arc::clone(checkpoint));
        }
        for going in going {
            if !only_metadata {
                self.drop_bitmaps(&job.live()?, &going).await?;
            }
            self.forget_checkpoint(&object, &going).await?;
        }
        Ok(())
    }

    async fn drop_bitmaps(&self, live: &Live<'_>, checkpoint: &Checkpoint) -> Result<()> {
        let nodes = live.monitor().execute(QueryNodeImages { flat: true }).await?;
        let (mut actions, mut reopened) = (Vec::new(), Vec::new());
        for disk in checkpoint.disks.iter().filter(|disk| disk.is_noted()) {
            let own = running(live.state())?.devices.disks.iter().find(|it| *it.name() == *disk.name);
            // It may have been unplugged.
            let Some(own) = own else { continue };
            let bitmap = disk.bitmap.as_deref().unwrap_or_default();
            let found = bitmaps(&nodes, own, bitmap);
            if found.is_empty() {
                let sentence = format!("bitmap '{bitmap}' not found in backing chain of '{}'", disk.name);
                return Err(Error::internal_error(sentence));
            }
            for (at, node, _) in found {
                actions.push(remove_action(node, bitmap));
                if at > 0 {
                    reopened.push((own.clone(), node.to_owned()));
                }
            }
        }
        // What is below others is only read.
        let mut writable = Vec::new();
        for (disk, node) in reopened {
            let options = self.reopen_options(live, &disk, &node).await?;
            reopen(live, &options, false).await?;
            writable.push(options);
        }
        let removed = live.monitor().execute(Transaction { actions }).await;
        for options in writable {
            if let Err(error) = reopen(live, &options, true).await {
                tracing::warn!(%error, "an image stays writable");
            }
        }
        Ok(removed.map(drop)?)
    }

    async fn reopen_options(&self, live: &Live<'_>, disk: &Disk, node: &str) -> Result<Value> {
        let steps = self.image_steps(live, disk).await?;
        let found = steps.into_iter().find_map(|step| match step {
            Step::Blockdev(options) if options.get("node-name").and_then(Value::as_str) == Some(node) => {
                Some(options)
            }
            _ => None,
        });
        found.ok_or_else(|| Error::internal_error(format!("block node '{node}' is not known")))
    }

    /// Writes checkpoints down and takes them over.
    pub(super) async fn keep_checkpoints(
        self: &Arc<Self>,
        object: &Arc<DomainObject>,
        changed: Vec<Checkpoint>,
    ) -> Result<()> {
        let (domains, object) = (Arc::clone(self), Arc::clone(object));
        blocking(move || {
            let state = object.state();
            for checkpoint in &changed {
                let (name, text) = (checkpoint.name(), checkpoint.to_xml(Form::SECURE, Shown::All));
                domains.checkpoint_files.save(&state.name, name, &text).map_err(|error| {
                    Error::io(format_args!("unable to save metadata for checkpoint {name}"), error)
                })?;
            }
            let change = |state: &mut State| {
                let checkpoints = Arc::make_mut(&mut state.checkpoints);
                changed.into_iter().for_each(|checkpoint| checkpoints.insert(Arc::new(checkpoint)));
                choose_current(checkpoints);
            };
            object.observe(change, |_, ()| ());
            Ok(())
        })
        .await
    }

    /// Those below it get its parent.
    async fn forget_checkpoint(
        self: &Arc<Self>,
        object: &Arc<DomainObject>,
        checkpoint: &Arc<Checkpoint>,
    ) -> Result<()> {
        let state = object.state();
        let name = checkpoint.name();
        let children = state.checkpoints.children(Some(name)).map(|child| {
            let mut child = Checkpoint::clone(child);
            child.set_parent(checkpoint.parent());
            child
        });
        self.keep_checkpoints(object, children.collect()).await?;
        let forget = |state: &mut State| {
            let checkpoints = Arc::make_mut(&mut state.checkpoints);
            checkpoints.remove(name);
            choose_current(checkpoints);
        };
        object.observe(forget, |_, ()| ());
        let (domains, domain, name) = (Arc::clone(self), Arc::clone(&state.name), name.to_owned());
        blocking(move || {
            domains.checkpoint_files.remove(&domain, &name).map_err(|error| {
                Error::io(format_args!("cannot remove the file of checkpoint '{name}'"), error)
            })
        })
        .await
    }

    /// Takes over the checkpoints that were made before.
    pub(super) fn load_checkpoints(&self) {
        for (domain, texts) in self.checkpoint_files.load() {
            let Ok(found) = self.list.by_name(&domain) else { continue };
            let mut checkpoints = Checkpoints::default();
            for text in texts {
                match Checkpoint::parse_made(&text) {
                    Ok(checkpoint) => checkpoints.insert(Arc::new(checkpoint)),
                    Err(error) => {
                        tracing::error!(%domain, error = error.message, "skipped the file of a checkpoint");
                    }
                }
            }
            choose_current(&mut checkpoints);
            found.object().observe(|state| state.checkpoints = Arc::new(checkpoints), |_, ()| ());
        }
    }

    /// Removes what is known of a domain's checkpoints.
    pub(super) fn remove_checkpoints(&self, state: &State) -> Result<()> {
        self.checkpoint_files.remove_all(&state.name).map_err(|error| {
            Error::io(format_args!("cannot remove the checkpoints of domain '{}'", state.name), error)
        })
    }
}

fn choose_current(checkpoints: &mut Checkpoints) {
    let leaves = checkpoints.iter().filter(|checkpoint| checkpoints.is_leaf(checkpoint.name()));
    let latest = leaves.max_by_key(|checkpoint| checkpoint.creation_time).map(|it| it.name().to_owned());
    checkpoints.set_current(latest.as_deref());
}

/// Completes a checkpoint of a guest that runs.
pub(super) fn plan(state: &State, mut checkpoint: Checkpoint) -> Result<Planned> {
    let live = running(state)?;
    let now = seconds_since_1970();
    checkpoint.creation_time = Some(now);
    checkpoint.name.get_or_insert_with(|| now.to_string().into());
    let name = checkpoint.name().to_owned();
    let then = Arc::new(as_defined(state, live)?);
    checkpoint.align(&then)?;
    checkpoint.domain = Some(KeptDomain(then));
    let mut actions = Vec::new();
    for (noted, disk) in
        checkpoint.disks.iter().zip(&live.devices.disks).filter(|(noted, _)| noted.is_noted())
    {
        if noted.bitmap.as_deref() != Some(&*name) {
            let sentence = format!("bitmap for disk '{}' must match checkpoint name '{name}'", noted.name);
            return Err(Error::config_unsupported(sentence));
        }
        if disk.format() != StorageFormat::Qcow2 {
            let (disk, format) = (&noted.name, disk.format());
            let sentence = format!("checkpoint for disk {disk} unsupported for storage type {format}");
            return Err(Error::config_unsupported(sentence));
        }
        check_supported(disk)?;
        let node = Layers::of(disk).nodes(0).map(|nodes| nodes.top).unwrap_or_default();
        actions.push(add_action(&node, &name, json!({ "persistent": true, "disabled": false })));
    }
    if state.checkpoints.get(&name).is_some() {
        return Err(Error::operation_failed(format!("domain moment {name} already exists")));
    }
    checkpoint.set_parent(state.checkpoints.current().map(|current| current.name()));
    Ok(Planned { checkpoint, actions })
}

pub(super) fn add_action(node: &str, name: &str, mut data: Value) -> Value {
    if let Some(data) = data.as_object_mut() {
        data.insert("node".to_owned(), node.into());
        data.insert("name".to_owned(), name.into());
    }
    json!({ "type": "block-dirty-bitmap-add", "data": data })
}

pub(super) fn remove_action(node: &str, name: &str) -> Value {
    json!({ "type": "block-dirty-bitmap-remove", "data": { "node": node, "name": name } })
}

/// A bitmap of this name in each image that has one: position, node, size of its marks in bytes.
pub(super) fn bitmaps<'a>(
    nodes: &'a [NodeImages],
    disk: &Disk,
    name: &str,
) -> Vec<(usize, &'a str, &'a NodeImages)> {
    let layers = Layers::of(disk);
    let of = |at: usize| {
        let top = layers.nodes(at)?.top;
        let node = nodes.iter().find(|node| node.node_name.as_deref() == Some(&*top))?;
        node.bitmap(name)?;
        Some((at, node.node_name.as_deref()?, node))
    };
    (0..layers.images().len()).filter_map(of).collect()
}

/// Whether what was written since is noted without a gap: from the top on, in images that follow on each other.
pub(super) fn check_bitmap(nodes: &[NodeImages], disk: &Disk, name: &str) -> Result<()> {
    let found = bitmaps(nodes, disk, name);
    let whole = found.iter().enumerate().all(|(place, (at, _, node))| {
        let sound =
            |it: &crate::qemu::monitor::DirtyBitmap| !it.inconsistent && it.persistent && it.recording;
        place == *at && node.bitmap(name).is_some_and(sound)
    });
    match whole && !found.is_empty() {
        true => Ok(()),
        false => Err(Error::checkpoint_inconsistent(format!(
            "missing or broken bitmap '{name}' for disk '{}'",
            disk.name()
        ))),
    }
}

fn written_since(nodes: &[NodeImages], disk: &Disk, name: &str) -> Option<u64> {
    check_bitmap(nodes, disk, name).ok()?;
    let found = bitmaps(nodes, disk, name);
    Some(found.iter().filter_map(|(_, _, node)| node.bitmap(name)).map(|bitmap| bitmap.count).sum())
}

async fn reopen(live: &Live<'_>, options: &Value, read_only: bool) -> Result<()> {
    let mut options = options.clone();
    if let Some(options) = options.as_object_mut() {
        options.insert("read-only".to_owned(), read_only.into());
    }
    let arguments = json!({ "options": [options] });
    live.monitor().execute_value("blockdev-reopen", Some(arguments)).await?;
    Ok(())
}
