//! Guests kept apart by the host's own users: whom QEMU runs as, and that its files are his meanwhile.
//!
//! ```text
//!  definition ─confine─► with labels ─┬─ runs_as ──► QEMU's user
//!                                     └─ of_guest ─► gifts ─give─► his ··· guest runs ··· ─take_back─► the owner's
//! ```
//!
//! What a guest needs is a list of [`Gift`]s, made from its definition alone: the same list, made anew by whichever
//! daemon is there at the guest's end, says what goes back. Whose the files were is noted beside them ([`remember`]).
//! libvirt calls this its DAC driver.

mod denied;
mod files;
mod lock;
mod remember;
mod transaction;

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use denied::explain;
pub use transaction::{After, Gift};

use self::files::Labels;
use crate::conf::devices::{Devices, Disk};
use crate::conf::domain::{Domain, Seclabel, SeclabelType};
use crate::util::accounts::{Ids, UnknownId, as_user, group_id, user_id};
use crate::util::boot;
use crate::util::reason::Reason;

/// Whom guests run as where nothing else is configured, if the host has him.
const USUAL_USER: &str = "libvirt-qemu";
const USUAL_GROUP: &str = "libvirt-qemu";

/// How labels name this way of keeping guests apart.
const MODEL: &str = "dac";

/// What an administrator decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub user: Option<u32>,
    pub group: Option<u32>,
    /// Files change hands with their guest.
    pub dynamic_ownership: bool,
    /// And go back to whom they belonged.
    pub remember_owner: bool,
    /// Definitions that say nothing are labelled.
    pub default_confined: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            user: None,
            group: None,
            dynamic_ownership: true,
            remember_owner: true,
            default_confined: true,
        }
    }
}

/// Whether it is noted whose a guest's files were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    Remembered,
    Forgotten,
}

/// Why a guest does not get what it needs. The texts are libvirt's.
#[derive(Debug, Error)]
pub enum SecurityError {
    /// `VIR_ERR_SYSTEM_ERROR`
    #[error("{sentence}: {}", Reason(source))]
    System { sentence: String, source: io::Error },
    /// `VIR_ERR_OPERATION_INVALID`
    #[error("Setting different DAC user or group on {} which is already in use", path.display())]
    InUse { path: PathBuf },
    /// `VIR_ERR_INTERNAL_ERROR`
    #[error("{0}")]
    Malformed(String),
    /// `VIR_ERR_CONFIG_UNSUPPORTED`
    #[error("{0}")]
    Unsupported(String),
    /// `VIR_ERR_INVALID_ARG`
    #[error(transparent)]
    Unknown(#[from] UnknownId),
}

impl SecurityError {
    fn system(sentence: String, source: io::Error) -> Self {
        Self::System { sentence, source }
    }
}

/// How guests are kept apart. A daemon of a user's own runs its guests as that user and changes nobody's files.
#[derive(Debug, Clone, Default)]
pub struct Security {
    dac: Option<Dac>,
}

#[derive(Debug, Clone)]
struct Dac {
    ids: Ids,
    policy: Policy,
    /// Of the host; nothing is noted without.
    boot: Option<u64>,
}

impl Security {
    /// For the daemon of a host. `home` is where it keeps the files of running guests.
    pub fn system(policy: Policy, home: &Path) -> Self {
        let usual = usual_ids(home);
        let ids = Ids { user: policy.user.unwrap_or(usual.user), group: policy.group.unwrap_or(usual.group) };
        let boot = boot::time().inspect_err(|error| {
            tracing::warn!(%error, "the owners of guests' files are not noted: the time of the boot is unknown");
        });
        Self { dac: Some(Dac { ids, policy, boot: boot.ok() }) }
    }

    /// Everything runs as `ids`, and all files are everybody's.
    pub fn fixed(ids: Ids) -> Self {
        let policy = Policy { dynamic_ownership: false, ..Policy::default() };
        Self { dac: Some(Dac { ids, policy, boot: None }) }
    }

    /// Whom a guest runs as that says nothing else; this daemon's own user if that is nothing.
    pub fn default_ids(&self) -> Option<Ids> {
        self.dac.as_ref().map(|dac| dac.ids)
    }

    /// Whether the owners of a guest's files are noted that starts now.
    pub fn owners(&self) -> Owners {
        match &self.dac {
            Some(Dac { policy, boot: Some(_), .. }) if policy.remember_owner => Owners::Remembered,
            _ => Owners::Forgotten,
        }
    }

    /// Gives a definition that is about to run its labels.
    pub fn confine(&self, domain: &mut Domain) -> Result<(), SecurityError> {
        self.check_models(domain)?;
        let Some(Dac { ids, policy, .. }) = &self.dac else { return Ok(()) };
        let labels = &mut domain.seclabels;
        let is_ours = |label: &Seclabel| label.model.as_deref() == Some(MODEL);
        if policy.default_confined && !labels.iter().any(is_ours) {
            labels.push(seclabel(SeclabelType::Dynamic, None));
        }
        let Some(label) = labels.iter_mut().find(|label| is_ours(label)) else { return Ok(()) };
        match label.kind {
            SeclabelType::None => return Ok(()),
            SeclabelType::Dynamic => label.label = Some(ids.to_string().into()),
            SeclabelType::Static => {}
        }
        if label.relabel {
            label.imagelabel.clone_from(&label.label);
        }
        Ok(())
    }

    /// Labels a guest that an earlier daemon started and that no file tells of.
    pub fn claim(&self, domain: &mut Domain, ids: Ids) {
        if self.dac.is_some() {
            let label: Option<Box<str>> = Some(ids.to_string().into());
            let imagelabel = label.clone();
            domain.seclabels = vec![Seclabel { imagelabel, ..seclabel(SeclabelType::Dynamic, label) }];
        }
    }

    /// Labels a guest that others started: it has the files that it opened, and nobody takes them back.
    pub fn leave_alone(&self, domain: &mut Domain, ids: Ids) {
        if self.dac.is_some() {
            let label = Some(ids.to_string().into());
            domain.seclabels = vec![Seclabel { relabel: false, ..seclabel(SeclabelType::Static, label) }];
        }
    }

    fn check_models(&self, domain: &Domain) -> Result<(), SecurityError> {
        let known = |model: &&str| *model == "none" || (*model == MODEL && self.dac.is_some());
        match files::models(domain).find(|model| !known(model)) {
            Some(model) => {
                Err(SecurityError::Unsupported(format!("Security driver model '{model}' is not available")))
            }
            None => Ok(()),
        }
    }

    /// Whom a labelled guest runs as; this daemon's own user if that is nothing.
    pub fn runs_as(&self, domain: &Domain) -> Result<Option<Ids>, SecurityError> {
        self.dac.as_ref().map(|dac| Labels::of(domain, dac.ids).process()).transpose()
    }

    /// Whose the images of a guest are.
    pub fn images_are_of(&self, domain: &Domain) -> Result<Option<Ids>, SecurityError> {
        self.dac.as_ref().map(|dac| Labels::of(domain, dac.ids).images()).transpose()
    }

    /// Everything that a guest needs as it starts.
    pub fn of_guest(&self, domain: &Domain) -> Result<Vec<Gift>, SecurityError> {
        self.gifts(domain, |labels| {
            labels.devices(&domain.devices)?;
            labels.system(domain)
        })
    }

    /// What it needs for some devices, which it may not have yet.
    pub fn of_devices(&self, domain: &Domain, devices: &Devices) -> Result<Vec<Gift>, SecurityError> {
        self.gifts(domain, |labels| labels.devices(devices))
    }

    /// What it needs for one disk, such as one with another medium in it.
    pub fn of_disk(&self, domain: &Domain, disk: &Disk) -> Result<Vec<Gift>, SecurityError> {
        self.gifts(domain, |labels| labels.disk(disk))
    }

    /// A file that is no part of the definition, such as one that its memory is read from.
    pub fn of_path(&self, domain: &Domain, path: &Path) -> Result<Vec<Gift>, SecurityError> {
        self.gifts(domain, |labels| labels.path(path))
    }

    fn gifts(
        &self,
        domain: &Domain,
        collect: impl FnOnce(&mut Labels<'_>) -> Result<(), SecurityError>,
    ) -> Result<Vec<Gift>, SecurityError> {
        let Some(dac) = self.dac.as_ref().filter(|dac| dac.policy.dynamic_ownership) else {
            return Ok(Vec::new());
        };
        let mut labels = Labels::of(domain, dac.ids);
        if labels.relabel() {
            collect(&mut labels)?;
        }
        Ok(labels.gifts)
    }

    /// Gives files to their guest: all of them, or none. Changes files: call it where that may block.
    pub fn give(&self, gifts: &[Gift], owners: Owners) -> Result<(), SecurityError> {
        let (owners, boot) = self.noted(owners);
        transaction::give(gifts, owners, boot)
    }

    /// Gives files back that [`Self::give`] gave, by this daemon or by one before. What cannot go back is named in
    /// the log.
    pub fn take_back(&self, gifts: &[Gift], owners: Owners) {
        let (owners, boot) = self.noted(owners);
        transaction::take_back(gifts, owners, boot, |_| false);
    }

    /// The same of a guest that runs on another host now: images that both have are its own there.
    pub fn take_back_rest(&self, gifts: &[Gift], owners: Owners) {
        let (owners, boot) = self.noted(owners);
        transaction::take_back(gifts, owners, boot, lock::is_shared);
    }

    fn noted(&self, owners: Owners) -> (Owners, u64) {
        match self.dac.as_ref().and_then(|dac| dac.boot) {
            Some(boot) => (owners, boot),
            None => (Owners::Forgotten, 0),
        }
    }

    /// Gives a guest what was made for it and goes with it: its directories, keys and sockets.
    pub fn hand_over(&self, domain: &Domain, path: &Path) -> Result<(), SecurityError> {
        match self.runs_as(domain)? {
            Some(ids) => give_for_good(path, ids),
            None => Ok(()),
        }
    }

    /// Gives QEMU's usual user a directory of the daemon's own, in which guests have theirs.
    pub fn share(&self, directory: &Path) -> Result<(), SecurityError> {
        match self.default_ids() {
            Some(ids) => give_for_good(directory, ids),
            None => Ok(()),
        }
    }
}

/// The label of a definition that is about users and groups.
pub fn label_of(domain: &Domain) -> Option<&Seclabel> {
    domain.seclabels.iter().find(|label| label.model.as_deref() == Some(MODEL))
}

fn seclabel(kind: SeclabelType, label: Option<Box<str>>) -> Seclabel {
    Seclabel {
        kind,
        model: Some(MODEL.into()),
        relabel: true,
        label,
        imagelabel: None,
        baselabel: None,
        implicit: true,
    }
}

/// Makes a file that the daemon made another's. Nobody else may have put a link there.
pub fn give_for_good(path: &Path, ids: Ids) -> Result<(), SecurityError> {
    if ids == Ids::own() {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, Some(ids.user), Some(ids.group)).map_err(|source| {
        let Ids { user, group } = ids;
        let sentence = format!("unable to set ownership of '{}' to user {user}:{group}", path.display());
        SecurityError::system(sentence, source)
    })
}

/// The same for a directory and the files in it.
pub fn give_tree_for_good(directory: &Path, ids: Ids) -> Result<(), SecurityError> {
    give_for_good(directory, ids)?;
    let unreadable =
        |source| SecurityError::system(format!("unable to read '{}'", directory.display()), source);
    for entry in std::fs::read_dir(directory).map_err(unreadable)? {
        give_for_good(&entry.map_err(unreadable)?.path(), ids)?;
    }
    Ok(())
}

/// Debian's user for guests, where the host has him and he can reach their files; this daemon's own otherwise.
fn usual_ids(home: &Path) -> Ids {
    let own = Ids::own();
    let (Ok(user), Ok(group)) = (user_id(USUAL_USER), group_id(USUAL_GROUP)) else { return own };
    usable(Ids { user, group }, home)
}

/// A user of the host's, unless he cannot reach `home`: below a private root nobody else may.
pub fn usable(ids: Ids, home: &Path) -> Ids {
    let own = Ids::own();
    if own.user != 0 {
        return own;
    }
    let Some(there) = home.ancestors().find(|directory| directory.exists()) else { return own };
    match as_user(ids, || std::fs::metadata(there.join("."))) {
        Ok(_) => ids,
        Err(error) => {
            tracing::warn!(directory = %there.display(), user = ids.user, %error, "guests run as root: their usual user cannot reach their files");
            own
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::conf::xml::Form;

    const IDS: Ids = Ids { user: 7, group: 8 };

    fn domain(seclabels: &str) -> Domain {
        let text = format!(
            "<domain type='qemu'><name>x</name><os><type>hvm</type></os><devices/>{seclabels}</domain>"
        );
        Domain::parse(&text, Form::INACTIVE).unwrap()
    }

    fn confined(seclabels: &str) -> Result<String, String> {
        let mut domain = domain(seclabels);
        Security::fixed(IDS).confine(&mut domain).map_err(|error| error.to_string())?;
        let Some(label) = domain.seclabels.pop() else { return Ok(String::new()) };
        let text = |text: Option<Box<str>>| text.unwrap_or("-".into());
        Ok(format!("{} {} {}", label.kind.as_str(), text(label.label), text(label.imagelabel)))
    }

    #[test]
    fn labels_are_made_of_what_a_definition_asks_for() {
        for (seclabels, expected) in [
            ("", Ok("dynamic +7:+8 +7:+8")),
            ("<seclabel type='dynamic' model='dac'/>", Ok("dynamic +7:+8 +7:+8")),
            ("<seclabel type='static' model='dac'><label>a:b</label></seclabel>", Ok("static a:b -")),
            (
                "<seclabel type='static' model='dac' relabel='yes'><label>a:b</label></seclabel>",
                Ok("static a:b a:b"),
            ),
            ("<seclabel type='none' model='dac'/>", Ok("none - -")),
            ("<seclabel model='selinux'/>", Err("Security driver model 'selinux' is not available")),
        ] {
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(confined(seclabels), expected, "{seclabels}");
        }
        let mut silent = domain("");
        let policy = Policy { default_confined: false, ..Policy::default() };
        let security = Security { dac: Some(Dac { ids: IDS, policy, boot: None }) };
        security.confine(&mut silent).unwrap();
        assert_eq!((silent.seclabels.len(), security.runs_as(&silent).unwrap()), (0, Some(IDS)));
    }

    #[test]
    fn a_user_s_own_daemon_knows_one_user() {
        let security = Security::default();
        let mut silent = domain("");
        security.confine(&mut silent).unwrap();
        assert_eq!((silent.seclabels.len(), security.runs_as(&silent).unwrap()), (0, None));
        let error = security.confine(&mut domain("<seclabel model='dac'/>")).unwrap_err();
        assert_eq!(error.to_string(), "Security driver model 'dac' is not available");
    }

    #[test]
    fn who_cannot_reach_the_files_of_guests_runs_none() {
        let own = Ids::own();
        if own.user != 0 {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let home = root.path().join("var/lib");
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(usable(IDS, &home), own);
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(usable(IDS, &home), IDS);
        fs::create_dir_all(&home).unwrap();
        fs::set_permissions(root.path().join("var"), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(usable(IDS, &home), own);
    }
}
