//! Images that a running guest gets beside those it has: opened as they are, or made first.
//!
//! ```text
//!  new:  file made, given to QEMU's user ─► opened as bytes ─► formatted by QEMU ─► opened as an image
//!  old:                 given            ─► opened
//! ```
//!
//! What fails on the way leaves nothing: no node in QEMU, no file that was not there.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::conf::devices::{Devices, Disk, Layer, Place, StorageFormat};
use crate::conf::domain::Domain;
use crate::drivers::domain::given::Given;
use crate::drivers::domain::reads::running;
use crate::drivers::domain::{Domains, blocking};
use crate::error::{Error, Result};
use crate::qemu::block::{Layers, Nodes};
use crate::qemu::block_jobs::{self, RunError};
use crate::qemu::hotplug::{self, Opened, Step};
use crate::qemu::job::Live;
use crate::qemu::monitor::{BlockNode, QueryNamedBlockNodes};

/// Whether an image is there.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::drivers::domain) enum Origin {
    Existing,
    /// Made as large as the disk; its header names this image as the one below.
    New(Option<Layer>),
}

/// Images that QEMU has opened and nothing stands on yet.
#[derive(Debug)]
pub(in crate::drivers::domain) struct Added {
    steps: Vec<Step>,
    given: Arc<Given>,
    /// Made by us.
    made: Option<PathBuf>,
}

impl Added {
    /// The guest goes on with them.
    pub(in crate::drivers::domain) fn keep(self) {
        self.given.keep();
    }

    /// Nothing is left of them.
    pub(in crate::drivers::domain) async fn give_up(self, live: &Live<'_>, error: Error) -> Error {
        hotplug::clear_away(live.monitor(), &self.steps).await;
        let error = self.given.fail(error).await;
        unmake(self.made).await;
        error
    }
}

async fn unmake(made: Option<PathBuf>) {
    let Some(made) = made else { return };
    if let Err(error) = tokio::fs::remove_file(&made).await {
        tracing::warn!(path = %made.display(), %error, "cannot remove an image that was just made");
    }
}

/// A disk as if it stood on other images, for the nodes and the files that it would have.
pub(in crate::drivers::domain) fn standing_on(disk: &Disk, layers: Layers) -> Disk {
    let mut other = disk.clone();
    other.driver.copy_on_read = None;
    other.mirror = None;
    other.readonly = false;
    layers.install(&mut other);
    other
}

fn only(disk: &Disk) -> Devices {
    Devices { disks: vec![disk.clone()], ..Devices::default() }
}

impl Domains {
    /// The nodes of a disk's images, lowest first, with the secrets that they need.
    pub(in crate::drivers::domain) async fn image_steps(
        &self,
        live: &Live<'_>,
        disk: &Disk,
    ) -> Result<Vec<Step>> {
        let steps = self.steps_of(running(live.state())?, live.files(), &only(disk)).await?;
        let is_image = |step: &Step| matches!(step, Step::Blockdev(_) | Step::Object(_));
        Ok(steps.into_iter().filter(is_image).collect())
    }

    /// Opens what `wanted` stands on and `disk` does not.
    pub(in crate::drivers::domain) async fn add_images(
        self: &Arc<Self>,
        live: &Live<'_>,
        disk: &Disk,
        wanted: &Disk,
        origin: Origin,
    ) -> Result<Added> {
        let mut plain = disk.clone();
        plain.driver.copy_on_read = None;
        let there = self.image_steps(live, &plain).await?;
        let mut steps = self.image_steps(live, wanted).await?;
        steps.retain(|step| !there.iter().any(|it| same_name(it, step)));
        let path = wanted.storage.path().map(PathBuf::from);
        let made = match &origin {
            Origin::New(_) => make(path, wanted.storage.kind()).await?,
            Origin::Existing => None,
        };
        let given = match self.give_images(live, wanted).await {
            Ok(given) => given,
            Err(error) => {
                unmake(made).await;
                return Err(error);
            }
        };
        let opened = match &origin {
            Origin::Existing => {
                hotplug::plug(live.monitor(), &steps, Opened::default()).await.map_err(Error::from)
            }
            Origin::New(below) => self.open_new(live, (disk, wanted), below.as_ref(), &steps).await,
        };
        let added = Added { steps, given, made };
        match opened {
            Ok(()) => Ok(added),
            Err(error) => {
                let error = added.given.fail(error).await;
                unmake(added.made).await;
                Err(error)
            }
        }
    }

    /// Gives QEMU's user the files of a disk.
    async fn give_images(self: &Arc<Self>, live: &Live<'_>, disk: &Disk) -> Result<Arc<Given>> {
        let mut view = Domain::clone(running(live.state())?);
        view.devices = only(disk);
        let (domains, state) = (Arc::clone(self), Arc::new(live.state().clone()));
        Ok(Arc::new(blocking(move || domains.give_devices(&state, &view)).await?))
    }

    /// Has QEMU format the topmost image of `wanted` while it opens the nodes; on failure none stays.
    async fn open_new(
        &self,
        live: &Live<'_>,
        (disk, wanted): (&Disk, &Disk),
        below: Option<&Layer>,
        steps: &[Step],
    ) -> Result<()> {
        let monitor = live.monitor();
        let nodes = Nodes::of(&wanted.storage, wanted.format())
            .ok_or_else(|| Error::internal_error("disk source has no node number"))?;
        let known = monitor.execute(QueryNamedBlockNodes { flat: true }).await?;
        let model = Nodes::of(&disk.storage, disk.format()).map(|nodes| nodes.top).unwrap_or_default();
        let model =
            known.iter().find(|node| node.node_name.as_deref() == Some(&*model)).ok_or_else(|| {
                Error::internal_error(format!("failed to update capacity data for block node '{model}'"))
            })?;
        for (done, step) in steps.iter().enumerate() {
            let name = node_name(step);
            let opened = async {
                if name == Some(&*nodes.storage) {
                    make_room(live, wanted, &nodes, model).await?;
                }
                if name == Some(&*nodes.top) && nodes.top != nodes.storage {
                    format(live, (wanted, below), &nodes, (disk, model)).await?;
                }
                hotplug::plug(monitor, std::slice::from_ref(step), Opened::default()).await?;
                Ok(())
            };
            if let Err(error) = opened.await {
                hotplug::clear_away(monitor, steps.get(..done).unwrap_or_default()).await;
                return Err(error);
            }
        }
        Ok(())
    }
}

fn node_name(step: &Step) -> Option<&str> {
    match step {
        Step::Blockdev(node) => node.get("node-name").and_then(Value::as_str),
        _ => None,
    }
}

fn same_name(one: &Step, other: &Step) -> bool {
    let id = |step: &Step| match step {
        Step::Blockdev(node) => node.get("node-name").cloned(),
        Step::Object(object) => object.get("id").cloned(),
        _ => None,
    };
    id(one).is_some() && id(one) == id(other)
}

/// Makes an empty file where there is none; the path if so.
async fn make(path: Option<PathBuf>, kind: crate::conf::devices::StorageKind) -> Result<Option<PathBuf>> {
    let Some(path) = path.filter(|_| kind == crate::conf::devices::StorageKind::File) else {
        return Ok(None);
    };
    blocking(move || match File::options().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(_) => Ok(Some(path)),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(None),
        Err(error) => Err(Error::io(format_args!("failed to create image file '{}'", path.display()), error)),
    })
    .await
}

/// The bytes of a raw image say how large the disk is; those of others grow.
async fn make_room(live: &Live<'_>, wanted: &Disk, nodes: &Nodes, model: &BlockNode) -> Result<()> {
    let (Place::File(Some(path)), StorageFormat::Raw) = (&wanted.storage.place, wanted.format()) else {
        return Ok(());
    };
    let options = json!({ "driver": "file", "filename": path, "size": model.image.virtual_size });
    create(live, &nodes.storage, options).await
}

async fn format(
    live: &Live<'_>,
    (wanted, below): (&Disk, Option<&Layer>),
    nodes: &Nodes,
    (disk, model): (&Disk, &BlockNode),
) -> Result<()> {
    if wanted.storage.slice.is_some() {
        let sentence = "creation of images with slice type='storage' is not supported";
        return Err(Error::operation_unsupported(sentence));
    }
    let kind = wanted.format();
    let mut options =
        json!({ "driver": kind.as_str(), "file": nodes.storage, "size": model.image.virtual_size });
    let set = |options: &mut Value, name: &str, value: Value| {
        if let Some(options) = options.as_object_mut() {
            options.insert(name.to_owned(), value);
        }
    };
    if kind == StorageFormat::Qcow2 && disk.format() == StorageFormat::Qcow2 {
        if let Some(size) = model.image.cluster_size {
            set(&mut options, "cluster-size", size.into());
        }
        if model.image.format_specific.data.extended_l2 {
            set(&mut options, "extended-l2", true.into());
        }
    }
    if let Some(below) = below.filter(|_| kind.has_backing())
        && let Some(path) = below.storage.path()
    {
        set(&mut options, "backing-file", path.into());
        set(&mut options, "backing-fmt", below.format.kind.as_str().into());
    }
    match kind {
        StorageFormat::Qcow2
        | StorageFormat::Qcow
        | StorageFormat::Qed
        | StorageFormat::Vmdk
        | StorageFormat::Vdi => create(live, &nodes.top, options).await,
        other => Err(Error::operation_unsupported(format!("can't create storage format '{other}'"))),
    }
}

async fn create(live: &Live<'_>, node: &str, options: Value) -> Result<()> {
    let arguments = json!({ "options": options });
    match block_jobs::run(live.monitor(), &format!("create-{node}"), "blockdev-create", arguments).await {
        Ok(()) => Ok(()),
        Err(RunError::Monitor(error)) => Err(error.into()),
        Err(RunError::Failed(why)) => {
            Err(Error::operation_failed(format!("failed to format image: '{why}'")))
        }
    }
}
