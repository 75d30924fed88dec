//! `<mirror>`: the image that a running disk is copied or committed to, and will stand on if somebody says so.

use super::storage::{LayerFormat, Place, Storage};
use crate::conf::xml::{Element, Form, Part, Writer, xml_enum};
use crate::conf::{ConfError, Result};

xml_enum! {
    /// What fills the image.
    pub enum MirrorJob {
        Copy = "copy",
        ActiveCommit = "active-commit",
    }
}

xml_enum! {
    /// How far it is, once both are alike.
    pub enum MirrorState {
        Ready = "yes",
        Abort = "abort",
        Pivot = "pivot",
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Mirror {
    pub job: MirrorJob,
    pub state: Option<MirrorState>,
    pub format: LayerFormat,
    pub storage: Storage,
}

impl Part for Mirror {
    fn read(element: Element<'_>) -> Result<Self> {
        let Some(format) = element.child("format") else {
            return Err(ConfError::xml("missing disk backing store format"));
        };
        if element.child("source").is_none() {
            return Err(ConfError::xml("mirror requires source element"));
        }
        Ok(Self {
            job: element.value("job")?.unwrap_or(MirrorJob::Copy),
            state: element.value("ready")?,
            format: LayerFormat::read(format)?,
            storage: Storage::read(element)?,
        })
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute("type", &self.storage.kind());
        // The older form, for copies.
        if let (Place::File(Some(path)), MirrorJob::Copy) = (&self.storage.place, self.job) {
            out.attribute("file", path);
            out.attribute("format", &self.format.kind);
        }
        out.attribute("job", &self.job);
        if let Some(state) = &self.state {
            out.attribute("ready", state);
        }
    }

    fn write_children(&self, out: &mut Writer) {
        debug_assert!(out.form().contains(Form::LIVE), "only running guests have mirrors");
        Part::write(&self.format, out, "format");
        self.storage.write_children(out);
    }
}
