//! `<encryption>` of a volume: the format, the secret that opens it, how it is made.

use crate::conf::xml::{Element, Part, Writer, xml_enum};
use crate::conf::{ConfError, Result};
use crate::util::uuid::Uuid;

xml_enum! {
    pub enum EncryptionFormat {
        Default = "default",
        Qcow = "qcow",
        Luks = "luks",
        Luks2 = "luks2",
        LuksAny = "luks-any",
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encryption {
    pub format: EncryptionFormat,
    pub engine: Option<Box<str>>,
    pub secrets: Vec<EncryptionSecret>,
    pub cipher: Option<Cipher>,
}

/// A passphrase that is kept as a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncryptionSecret {
    pub lookup: SecretLookup,
}

/// How a secret is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretLookup {
    Uuid(Uuid),
    Usage(Box<str>),
}

/// What new images are encrypted with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cipher {
    pub name: Box<str>,
    pub size: u32,
    pub mode: Option<Box<str>>,
    pub hash: Option<Box<str>>,
    pub init_vector: Option<InitVector>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitVector {
    pub name: Box<str>,
    pub hash: Option<Box<str>>,
}

impl Encryption {
    /// Whether the cluster's own library opens the image, not QEMU.
    pub fn is_by_librbd(&self) -> bool {
        self.engine.as_deref() == Some("librbd")
    }

    /// An image that was found to be encrypted; with which secret nobody knows.
    pub fn found(format: EncryptionFormat) -> Self {
        Self { format, engine: None, secrets: Vec::new(), cipher: None }
    }
}

fn optional(element: Element<'_>, name: &str) -> Option<Box<str>> {
    element.attribute(name).map(Into::into)
}

impl Part for Encryption {
    fn read(element: Element<'_>) -> Result<Self> {
        let word = element.attribute("format").filter(|word| !word.is_empty());
        let word = word.ok_or_else(|| ConfError::xml("unknown volume encryption format"))?;
        let unknown = || ConfError::unsupported(format!("unknown volume encryption format type {word}"));
        let format = EncryptionFormat::from_word(word).ok_or_else(unknown)?;
        let secrets = element.children_named("secret").map(EncryptionSecret::read).collect::<Result<_>>()?;
        let cipher = match format {
            EncryptionFormat::Luks => Cipher::read_in(element)?,
            _ => None,
        };
        Ok(Self { format, engine: optional(element, "engine"), secrets, cipher })
    }

    fn write(&self, out: &mut Writer, name: &str) {
        out.block(name, |out| {
            out.attribute("format", &self.format);
            write_optional(out, "engine", &self.engine);
            for secret in &self.secrets {
                out.element("secret", |out| {
                    out.attribute_str("type", "passphrase");
                    match &secret.lookup {
                        SecretLookup::Uuid(uuid) => out.attribute("uuid", uuid),
                        SecretLookup::Usage(usage) => out.attribute("usage", usage),
                    }
                });
            }
            if let Some(cipher) = &self.cipher {
                cipher.write(out);
            }
        });
    }
}

fn write_optional(out: &mut Writer, name: &str, value: &Option<Box<str>>) {
    if let Some(value) = value {
        out.attribute(name, value);
    }
}

impl EncryptionSecret {
    fn read(element: Element<'_>) -> Result<Self> {
        match element.attribute("type") {
            None | Some("") => return Err(ConfError::xml("unknown volume encryption secret type")),
            Some("passphrase") => {}
            Some(other) => {
                let sentence = format!("unknown volume encryption secret type {other}");
                return Err(ConfError::unsupported(sentence));
            }
        }
        let lookup = match (element.attribute("uuid"), element.attribute("usage")) {
            (None, None) => return Err(ConfError::xml("missing auth secret uuid or usage attribute")),
            (Some(_), Some(_)) => return Err(ConfError::xml("either auth secret uuid or usage expected")),
            (Some(uuid), None) => {
                let invalid = |_| ConfError::xml(format!("invalid auth secret uuid '{uuid}'"));
                SecretLookup::Uuid(uuid.parse().map_err(invalid)?)
            }
            (None, Some(usage)) => SecretLookup::Usage(usage.into()),
        };
        Ok(Self { lookup })
    }
}

impl Cipher {
    fn read_in(encryption: Element<'_>) -> Result<Option<Self>> {
        let vector = encryption.child("ivgen");
        let Some(element) = encryption.child("cipher") else {
            return match vector {
                Some(_) => Err(ConfError::xml("ivgen element found, but cipher is missing")),
                None => Ok(None),
            };
        };
        let missing = || ConfError::xml("cipher info missing 'name' attribute");
        Ok(Some(Self {
            name: optional(element, "name").ok_or_else(missing)?,
            size: element.required("size")?,
            mode: optional(element, "mode"),
            hash: optional(element, "hash"),
            init_vector: vector.map(InitVector::read).transpose()?,
        }))
    }

    fn write(&self, out: &mut Writer) {
        out.element("cipher", |out| {
            out.attribute("name", &self.name);
            out.attribute("size", &self.size);
            write_optional(out, "mode", &self.mode);
            write_optional(out, "hash", &self.hash);
        });
        if let Some(vector) = &self.init_vector {
            out.element("ivgen", |out| {
                out.attribute("name", &vector.name);
                write_optional(out, "hash", &vector.hash);
            });
        }
    }
}

impl InitVector {
    fn read(element: Element<'_>) -> Result<Self> {
        let name = optional(element, "name");
        let name = name.ok_or_else(|| ConfError::xml("missing ivgen info name string"))?;
        Ok(Self { name, hash: optional(element, "hash") })
    }
}
