//! Between the wire's types and ours.

use ferrovirt_protocol::remote;
use ferrovirt_protocol::xdr::{Encode, EncodeResult, Encoder};

use crate::drivers::domain::event::DomainRef;
use crate::error::Error;
use crate::util::uuid::Uuid;

/// The longest string of an error on the wire.
const MAX_STRING: usize = 4 * 1024 * 1024;

/// An error as libvirt's clients expect it: the whole sentence, and its parts.
pub(super) struct WireError<'a>(pub(super) &'a Error);

impl Encode for WireError<'_> {
    fn encode(&self, out: &mut Encoder<'_>) -> EncodeResult {
        const NOTHING: Option<&str> = None;
        let error = self.0;
        let string = |out: &mut Encoder<'_>, text: &str| out.string(text, MAX_STRING);
        error.code.0.encode(out)?;
        error.origin.0.encode(out)?;
        out.option(Some(printable(&error.message()).as_str()), string)?;
        (error.level as i32).encode(out)?;
        out.option(NOTHING, string)?; // no domain
        out.option(Some(error.template().as_str()), string)?;
        let detail = printable(&error.detail);
        out.option((!detail.is_empty()).then_some(detail.as_str()), string)?;
        out.option(NOTHING, string)?; // str3
        error.errno.unwrap_or(-1).encode(out)?;
        (-1i32).encode(out)?;
        out.option(NOTHING, string) // no network
    }
}

/// A sentence may quote what a guest or a client said; the wire has no NUL bytes.
fn printable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// A domain as clients know it.
pub fn domain(domain: &DomainRef) -> remote::Domain {
    remote::Domain { name: domain.name.to_string(), uuid: domain.uuid.0, id: domain.id }
}

/// The uuid by which a client names a domain: it is what counts, names and ids may have changed since.
pub fn uuid(domain: &remote::Domain) -> Uuid {
    Uuid(domain.uuid)
}
