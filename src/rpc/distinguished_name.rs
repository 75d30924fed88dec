//! Distinguished names of certificates, written as GnuTLS writes them: administrators compare with those.
//!
//! In the order of the certificate, `C=GB,O=libvirt.org,CN=client1`; RFC 4514's escapes.

use rustls::pki_types::CertificateDer;
use x509_parser::parse_x509_certificate;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// Attributes that have a short name.
const NAMES: [(&str, &str); 15] = [
    ("2.5.4.6", "C"),
    ("2.5.4.8", "ST"),
    ("2.5.4.7", "L"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "surName"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.9", "street"),
    ("2.5.4.12", "title"),
    ("2.5.4.42", "givenName"),
    ("2.5.4.43", "initials"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("1.2.840.113549.1.9.1", "EMAIL"),
];

/// The certificate has no readable subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unreadable;

pub(super) fn of_certificate(certificate: &CertificateDer<'_>) -> Result<String, Unreadable> {
    let (_, certificate) = parse_x509_certificate(certificate).map_err(|_| Unreadable)?;
    Ok(write(certificate.subject()))
}

fn write(name: &X509Name<'_>) -> String {
    let relative = |attributes: Vec<String>| attributes.join("+");
    let parts = name.iter_rdn().map(|rdn| relative(rdn.iter().map(attribute).collect()));
    parts.collect::<Vec<_>>().join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    let name = NAMES.iter().find(|(number, _)| *number == oid).map(|(_, name)| *name);
    match (name, attribute.as_str()) {
        (Some(name), Ok(value)) => format!("{name}={}", escape(value)),
        _ => {
            let hex: String = attribute.as_slice().iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{}=#{hex}", name.unwrap_or(&oid))
        }
    }
}

fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    let last = value.chars().count().saturating_sub(1);
    for (at, char) in value.chars().enumerate() {
        let outer_blank = char == ' ' && (at == 0 || at == last);
        if outer_blank || (char == '#' && at == 0) || ",+\"\\<>;".contains(char) {
            escaped.push('\\');
        }
        escaped.push(char);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_as_gnutls_writes_them() {
        // virt-pki-query-dn says so of the same subject.
        let subject =
            [("2.5.4.6", "GB"), ("2.5.4.7", "Lon, don"), ("2.5.4.11", "x+y"), ("2.5.4.3", "client1")];
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (oid, value) in subject {
            let oid: Vec<u64> = oid.split('.').map(|part| part.parse().unwrap()).collect();
            params.distinguished_name.push(rcgen::DnType::CustomDnType(oid), value);
        }
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        assert_eq!(of_certificate(certificate.der()).unwrap(), "C=GB,L=Lon\\, don,OU=x\\+y,CN=client1");
        assert_eq!(of_certificate(&CertificateDer::from(vec![0x30, 0x80])), Err(Unreadable));
        assert_eq!(escape(" #a<b "), "\\ #a\\<b\\ ");
    }
}
