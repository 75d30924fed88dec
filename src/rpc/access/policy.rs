//! The access driver `policy`: a file that says who may do what on which guests.
//!
//! ```toml
//! # Anyone may connect and list; what a list shows follows from the other rules.
//! [[allow]]
//! users = ["*"]
//! permissions = ["connect:getattr", "connect:read", "connect:search_*"]
//!
//! # alice, and whoever is in the group web, may do everything with guests called web-….
//! [[allow]]
//! users = ["alice"]
//! groups = ["web"]
//! permissions = ["domain:*"]
//! names = ["web-*"]
//! ```
//!
//! What no rule allows is refused. A rule says who (`users`, `groups`, `sasl`, `x509`; one of them has to fit),
//! what (`permissions`, `CLASS:PERMISSION`), and may say on which objects: every one of `names`, `uuids` and
//! `metadata` that is given has to fit. An object that has no such property, the connection for one, is then
//! not meant. A file that is missing or wrong allows nothing.
//!
//! `connect:write` is for proxies and administrators alone: who has it may say on whose behalf it calls
//! (`virConnectSetIdentity`), and is then judged as that one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use ferrovirt_protocol::{qemu, remote};
use serde::Deserialize;
use thiserror::Error;

use super::driver::{AccessDriver, Object, Unanswered, Verdict, Who};
use crate::conf::xml::{Document, Form};
use crate::util::accounts::{self, UnknownId};
use crate::util::reason::Reason;
use crate::util::uuid::Uuid;
use crate::util::wildcard;

#[derive(Debug, Error)]
pub enum PolicyError {
    #[error("cannot read access policy {}: {}", path.display(), Reason(source))]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", path.display())]
    Syntax { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{}: rule {number}: {mistake}", path.display())]
    Rule { path: PathBuf, number: usize, mistake: Mistake },
}

/// What is wrong with a rule.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Mistake {
    #[error("it does not say who: users, groups, sasl or x509")]
    Nobody,
    #[error("it allows nothing: permissions are missing")]
    Nothing,
    #[error("there is no permission '{0}'")]
    Permission(String),
    #[error(transparent)]
    Account(#[from] UnknownId),
    #[error("'{0}' is not a uuid")]
    Uuid(String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    allow: Vec<Written>,
}

/// A rule as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    sasl: Vec<String>,
    #[serde(default)]
    x509: Vec<String>,
    #[serde(default)]
    permissions: Vec<String>,
    names: Option<Vec<String>>,
    uuids: Option<Vec<String>>,
    metadata: Option<Marked>,
}

/// `<metadata>` has an element of this namespace whose text is this.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marked {
    namespace: String,
    text: String,
}

#[derive(Debug)]
enum Account {
    Anyone,
    Number(u32),
}

#[derive(Debug)]
struct Rule {
    users: Vec<Account>,
    groups: Vec<u32>,
    sasl: Vec<String>,
    x509: Vec<String>,
    permissions: Vec<String>,
    names: Option<Vec<String>>,
    uuids: Option<Vec<Uuid>>,
    metadata: Option<Marked>,
}

/// All rules of a file.
#[derive(Debug, Default)]
pub struct Policy {
    rules: Vec<Rule>,
}

impl Policy {
    pub fn load(path: &Path) -> Result<Self, PolicyError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| PolicyError::Read { path: path.to_owned(), source })?;
        Self::read(path, &text)
    }

    /// Reads the content of a file; `path` is for the errors.
    pub fn read(path: &Path, text: &str) -> Result<Self, PolicyError> {
        let file: File = toml::from_str(text)
            .map_err(|source| PolicyError::Syntax { path: path.to_owned(), source: Box::new(source) })?;
        let rules = file.allow.into_iter().enumerate().map(|(index, written)| {
            let wrong = |mistake| PolicyError::Rule { path: path.to_owned(), number: index + 1, mistake };
            Rule::check(written).map_err(wrong)
        });
        Ok(Self { rules: rules.collect::<Result<_, _>>()? })
    }

    pub fn allows(&self, who: &Who, object: &Object, permission: &str) -> bool {
        let wanted = format!("{}:{permission}", object.class());
        self.rules.iter().any(|rule| {
            rule.permissions.iter().any(|pattern| wildcard::matches(pattern, &wanted))
                && rule.is_for(who)
                && rule.is_about(object)
        })
    }
}

impl Rule {
    fn check(written: Written) -> Result<Self, Mistake> {
        let Written { users, groups, sasl, x509, permissions, names, uuids, metadata } = written;
        if users.is_empty() && groups.is_empty() && sasl.is_empty() && x509.is_empty() {
            return Err(Mistake::Nobody);
        }
        if permissions.is_empty() {
            return Err(Mistake::Nothing);
        }
        if let Some(unknown) = permissions.iter().find(|pattern| !is_known(pattern)) {
            return Err(Mistake::Permission(unknown.clone()));
        }
        let account = |name: String| match name.as_str() {
            "*" => Ok(Account::Anyone),
            name => accounts::user_id(name).map(Account::Number),
        };
        let uuid = |text: String| text.parse().map_err(|_| Mistake::Uuid(text));
        Ok(Self {
            users: users.into_iter().map(account).collect::<Result<_, _>>()?,
            groups: groups.iter().map(|name| accounts::group_id(name)).collect::<Result<_, _>>()?,
            sasl,
            x509,
            permissions,
            names,
            uuids: uuids.map(|uuids| uuids.into_iter().map(uuid).collect()).transpose()?,
            metadata,
        })
    }

    fn is_for(&self, who: &Who) -> bool {
        let user = |account: &Account| match account {
            Account::Anyone => true,
            Account::Number(uid) => who.identity.uid == Some(*uid),
        };
        let group = |gid: &u32| who.groups().contains(gid);
        let fits = |patterns: &[String], name: &Option<Box<str>>| {
            name.as_deref().is_some_and(|name| any(patterns, name))
        };
        self.users.iter().any(user)
            || self.groups.iter().any(group)
            || fits(&self.sasl, &who.identity.sasl_name)
            || fits(&self.x509, &who.identity.x509_name)
    }

    fn is_about(&self, object: &Object) -> bool {
        let (name, uuid) = match object {
            Object::Connect => (None, None),
            Object::Domain { name, uuid, .. } => (Some(name.to_string()), Some(uuid)),
            Object::StoragePool(pool) => (Some(pool.name.to_string()), Some(&pool.uuid)),
            Object::StorageVol { volume, .. } => (Some(format!("{}/{}", volume.pool, volume.name)), None),
            Object::Secret(secret) => (Some(secret.usage_id.to_string()), Some(&secret.uuid)),
        };
        let named = |names: &Vec<String>| name.as_ref().is_some_and(|name| any(names, name));
        let numbered = |uuids: &Vec<Uuid>| uuid.is_some_and(|uuid| uuids.contains(uuid));
        self.names.as_ref().is_none_or(named)
            && self.uuids.as_ref().is_none_or(numbered)
            && self.metadata.as_ref().is_none_or(|wanted| wanted.marks(object))
    }
}

impl Marked {
    fn marks(&self, object: &Object) -> bool {
        let Object::Domain { definition: Some(definition), .. } = object else { return false };
        let element = definition.metadata.as_ref().and_then(|metadata| metadata.get(&self.namespace));
        element.is_some_and(|element| {
            Document::parse(&element, Form::INACTIVE).is_ok_and(|it| it.root().text().trim() == self.text)
        })
    }
}

fn any(patterns: &[String], text: &str) -> bool {
    patterns.iter().any(|pattern| wildcard::matches(pattern, text))
}

/// Whether a pattern means any permission that a call of the interface asks for: the others are misspelt.
fn is_known(pattern: &str) -> bool {
    let calls = remote::ENTRIES.iter().chain(qemu::ENTRIES);
    let mut checks = calls.flat_map(|entry| entry.acl);
    checks.any(|check| wildcard::matches(pattern, &format!("{}:{}", check.object, check.permission)))
}

/// The driver: the rules in force, and where they come from.
#[derive(Debug)]
pub struct PolicyDriver {
    path: PathBuf,
    policy: ArcSwap<Policy>,
}

impl PolicyDriver {
    /// With the rules of a file; without any, and so refusing everything, if they cannot be had.
    pub fn load(path: PathBuf) -> Self {
        let policy = Policy::load(&path).unwrap_or_else(|error| {
            tracing::error!(%error, "without its policy nobody may do anything");
            Policy::default()
        });
        Self { path, policy: ArcSwap::from_pointee(policy) }
    }
}

impl AccessDriver for PolicyDriver {
    fn name(&self) -> &'static str {
        "policy"
    }

    fn allows<'a>(&'a self, who: &'a Who, object: &'a Object, permission: &'static str) -> Verdict<'a> {
        Box::pin(std::future::ready(Ok(self.policy.load().allows(who, object, permission))))
    }

    fn reload(&self) -> Result<(), Unanswered> {
        self.policy.store(Arc::new(Policy::load(&self.path)?));
        Ok(())
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
