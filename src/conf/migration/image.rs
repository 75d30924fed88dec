//! A volume for a disk that comes along, as a pool is asked for it.

use crate::conf::devices::StorageFormat;
use crate::conf::xml::{Form, write_document, xml};

xml! {
    /// `<volume>`
    pub struct NewVolume {
        text name: Box<str> = "name";
        /// Bytes that are set aside at once; all, where nothing is said.
        text allocation: Option<u64> = "allocation";
        text capacity: u64 = "capacity";
        child target: NewTarget = "target";
    }
}

xml! {
    /// `<target>`
    pub struct NewTarget {
        child_attr format: Option<StorageFormat> = "format" / "type";
        /// The version of the format, by the QEMU that began with it.
        text compat: Option<Box<str>> = "compat";
    }
}

impl NewVolume {
    pub fn to_xml(&self) -> String {
        write_document(self, "volume", Form::INACTIVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_asked_in_libvirts_words() {
        let target = NewTarget { format: Some(StorageFormat::Qcow2), compat: Some("1.1".into()) };
        let volume = NewVolume { name: "a&b".into(), allocation: Some(0), capacity: 512, target };
        let expected = "<volume>\n  <name>a&amp;b</name>\n  <allocation>0</allocation>\n  <capacity>512</capacity>\n  \
             <target>\n    <format type='qcow2'/>\n    <compat>1.1</compat>\n  </target>\n</volume>\n";
        assert_eq!(volume.to_xml(), expected);
    }
}
