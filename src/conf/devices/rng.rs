//! `<rng>`: a source of randomness for the guest.

use super::chardev::CharSource;
use super::info::{DeviceInfo, VirtioOptions};
use crate::conf::xml::{xml, xml_enum};

xml_enum! {
    pub enum RngModel {
        Virtio = "virtio",
        VirtioTransitional = "virtio-transitional",
        VirtioNonTransitional = "virtio-non-transitional",
    }
}

xml! {
    pub struct Rng {
        attr model: RngModel = "model";
        child rate: Option<RngRate> = "rate";
        child backend: RngBackend = "backend";
        group driver: VirtioOptions = "driver";
        flat info: DeviceInfo;
    }
}

xml! {
    /// At most `bytes` per `period_ms`.
    pub struct RngRate {
        attr bytes: u32 = "bytes";
        attr period_ms: Option<u32> = "period";
    }
}

xml! {
    /// Where the host takes the randomness from.
    pub enum RngBackend by "model" {
        "random" => Random(RandomSource),
        "egd" => Egd(CharSource),
        "builtin" => Builtin,
    }
}

xml! {
    pub struct RandomSource {
        body path: Option<Box<str>>;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::xml::{Form, read_document, write_document};

    #[test]
    fn a_device_survives_and_what_nobody_knows_does_not() {
        let text = "<rng model='virtio' foo='1'><unknown/><backend model='random'>/dev/urandom</backend>\
                    <rate period='2000' bytes='1234'/><alias name='rng0'/>\
                    <address type='pci' domain='0' bus='0x0' slot='10' function='0x1' multifunction='on'/></rng>";
        let rng: Rng = read_document(text, "rng", Form::INACTIVE).unwrap();
        assert_eq!(
            write_document(&rng, "rng", Form::INACTIVE),
            "<rng model='virtio'>\n  <rate bytes='1234' period='2000'/>\n  \
             <backend model='random'>/dev/urandom</backend>\n  \
             <address type='pci' domain='0x0000' bus='0x00' slot='0x0a' function='0x1' multifunction='on'/>\n</rng>\n"
        );
    }

    #[test]
    fn errors_name_element_attribute_and_value() {
        let read = |text| read_document::<Rng>(text, "rng", Form::INACTIVE).unwrap_err().message;
        assert_eq!(
            read("<rng model='bogus'/>"),
            "Invalid value for attribute 'model' in element 'rng': 'bogus'."
        );
        assert_eq!(read("<rng/>"), "Missing required attribute 'model' in element 'rng'");
        assert_eq!(
            read("<rng model='virtio'><rate bytes='-1'/></rng>"),
            "Invalid value for attribute 'bytes' in element 'rate': '-1'. Expected non-negative integer value"
        );
        assert_eq!(read("<disk/>"), "expecting root element of 'rng', not 'disk'");
    }
}
