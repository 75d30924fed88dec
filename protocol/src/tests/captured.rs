//! Frames of real clients and daemons decode by their procedure and encode to the same bytes.

use std::collections::HashSet;

use bytes::BytesMut;

use super::data;
use crate::every::codecs;
use crate::frame::{self, Frame, FrameType, MAX_FRAME, Status};
use crate::net::{Error, StreamHole};
use crate::xdr::Decode;

fn frames(file: &str) -> Vec<Frame> {
    let recorded = std::fs::read(data(file)).unwrap();
    let mut rest = BytesMut::from(&recorded[..]);
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let direction = rest.split_to(1)[0];
        assert!(matches!(direction, b'<' | b'>'), "{file} is damaged");
        frames.push(frame::cut(&mut rest, MAX_FRAME).unwrap().unwrap());
    }
    frames
}

fn check(file: &str) -> HashSet<(u32, i32)> {
    let codecs = codecs();
    let mut seen = HashSet::new();
    for Frame { header, mut payload } in frames(file) {
        let mut whole = BytesMut::new();
        frame::put_bytes(&mut whole, &header, &payload).unwrap();
        let again = frame::cut(&mut whole.clone(), MAX_FRAME).unwrap().unwrap();
        assert_eq!(again, Frame { header, payload: payload.clone() });

        let of_header = |codec: &&crate::every::Codec| {
            codec.program == header.program && codec.number == header.procedure
        };
        let codec = codecs.iter().find(of_header).unwrap_or_else(|| panic!("no such procedure: {header:?}"));
        if header.kind.carries_fds() {
            let _count = payload.split_to(u32::MIN_SIZE);
        }
        let recode = match (header.kind, header.status) {
            (FrameType::STREAM, Status::CONTINUE | Status::OK) => continue,
            (FrameType::STREAM, _) if payload.is_empty() => continue, // a client's abort
            (FrameType::STREAM_HOLE, _) => crate::every::recode::<StreamHole>,
            (_, Status::ERROR) => crate::every::recode::<Error>,
            (FrameType::REPLY | FrameType::REPLY_WITH_FDS, _) => codec.ret.unwrap(),
            _ => codec.args,
        };
        let wire = recode(&payload).unwrap_or_else(|error| panic!("{} {header:?}: {error}", codec.name));
        assert_eq!(wire, payload, "{} {header:?}", codec.name);
        seen.insert((header.program, header.procedure));
    }
    seen
}

#[test]
fn libvirtd_and_its_clients() {
    let seen = check("frames/libvirtd.bin");
    assert!(seen.len() > 200, "{}", seen.len());
}

#[test]
fn virt_admin_and_libvirtd() {
    let seen = check("frames/admin.bin");
    assert!(seen.len() > 10, "{}", seen.len());
}
