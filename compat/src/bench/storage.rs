//! Volumes as streams, and pools with many of them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use bytes::BytesMut;
use ferrovirt_compat::Daemon;
use ferrovirt_compat::wire::Wire;
use ferrovirt_protocol::frame::{FrameType, Header, Status};
use ferrovirt_protocol::procedure::Procedure;
use ferrovirt_protocol::remote::{self, procedure};

use crate::Effort;
use crate::calls::{ask, call, open};
use crate::timing::{micros, repeat};

/// What virsh sends at once.
const FRAME: usize = 262_120;
/// A volume that is streamed. It stays in the page cache, as the copy beside it does.
const FRAMES: usize = 4096;
const SIZE: u64 = (FRAME * FRAMES) as u64;
/// A volume that is mostly holes: 2 GiB, with a piece of data every 64 MiB.
const SPARSE: u64 = 2 << 30;
const EVERY: u64 = 64 << 20;
const DATA: usize = 8 << 20;
const MANY: usize = 10_000;

fn pool(daemon: &Daemon, wire: &mut Wire, name: &str) -> remote::StoragePool {
    let path = daemon.path(name);
    fs::create_dir_all(&path).expect("the root is ours");
    let path = path.display();
    let xml = format!("<pool type='dir'><name>{name}</name><target><path>{path}</path></target></pool>");
    call::<procedure::StoragePoolCreateXml>(wire, &remote::StoragePoolCreateXmlArgs { xml, flags: 0 }).pool
}

pub(crate) fn measure(daemon: &Daemon, effort: Effort, put: &mut dyn FnMut(&'static str, f64)) {
    let mut wire = open(daemon);
    wire.set_limit(std::time::Duration::from_secs(120)).expect("a socket");
    let streams = pool(daemon, &mut wire, "streams");
    let best = |mut once: Box<dyn FnMut() -> f64 + '_>| (0..3).map(|_| once()).fold(0.0, f64::max);
    let vol = volume(&mut wire, &streams, "full", SIZE);
    put("upload", best(Box::new(|| upload(&mut wire, &vol))));
    put("download", best(Box::new(|| download(&mut wire, &vol))));
    sparse(daemon, put);

    let many = pool(daemon, &mut wire, "many");
    for number in 0..MANY {
        File::create(daemon.path(&format!("many/v{number}"))).expect("the root is ours");
    }
    let refresh = remote::StoragePoolRefreshArgs { pool: many.clone(), flags: 0 };
    call::<procedure::StoragePoolRefresh>(&mut wire, &refresh);
    let list = remote::StoragePoolListAllVolumesArgs { pool: many, need_results: 1, flags: 0 };
    let mut lists = repeat(effort.calls / 100, || {
        ask::<procedure::StoragePoolListAllVolumes>(&mut wire, &list);
    });
    assert_eq!(call::<procedure::StoragePoolListAllVolumes>(&mut wire, &list).vols.len(), MANY);
    put("volumes", lists.median() / 1e3);
    let mut refreshes = repeat(effort.rounds, || call::<procedure::StoragePoolRefresh>(&mut wire, &refresh));
    put("refresh", refreshes.median() / 1e3);
}

fn volume(wire: &mut Wire, pool: &remote::StoragePool, name: &str, capacity: u64) -> remote::StorageVol {
    let xml = format!("<volume><name>{name}</name><capacity>{capacity}</capacity></volume>");
    let args = remote::StorageVolCreateXmlArgs { pool: pool.clone(), xml, flags: 0 };
    call::<procedure::StorageVolCreateXml>(wire, &args).vol
}

fn rate(bytes: u64, micros: f64) -> f64 {
    bytes as f64 / micros
}

pub(crate) fn header<P: Procedure>(serial: u32, status: Status) -> Header {
    Header {
        program: P::PROGRAM.number,
        version: P::PROGRAM.version,
        procedure: P::NUMBER,
        kind: FrameType::STREAM,
        serial,
        status,
    }
}

pub(crate) fn frame(header: Header, payload: &[u8]) -> Vec<u8> {
    let mut frame = BytesMut::new();
    ferrovirt_protocol::frame::put_with(&mut frame, &header, |out| out.raw(payload)).expect("it fits");
    frame.to_vec()
}

/// A call that opens a stream; its serial.
pub(crate) fn begin<P: Procedure>(wire: &mut Wire, args: &P::Args) -> u32 {
    let serial = wire.queue::<P>(args).expect("it encodes");
    wire.flush().expect("the daemon reads");
    let reply = wire.reply().expect("the daemon answers");
    assert_eq!(reply.header.status, Status::OK, "{}", P::NAME);
    serial
}

/// In megabytes a second, until the daemon has confirmed it.
fn upload(wire: &mut Wire, vol: &remote::StorageVol) -> f64 {
    type Up = procedure::StorageVolUpload;
    let args = remote::StorageVolUploadArgs { vol: vol.clone(), offset: 0, length: 0, flags: 0 };
    let serial = begin::<Up>(wire, &args);
    let data = frame(header::<Up>(serial, Status::CONTINUE), &[7; FRAME]);
    let end = frame(header::<Up>(serial, Status::OK), &[]);
    let took = micros(|| {
        (0..FRAMES).for_each(|_| wire.send(&data).expect("the daemon reads"));
        wire.send(&end).expect("the daemon reads");
        assert_eq!(wire.receive().expect("the daemon answers").header.status, Status::OK);
    });
    rate(SIZE, took)
}

fn download(wire: &mut Wire, vol: &remote::StorageVol) -> f64 {
    type Down = procedure::StorageVolDownload;
    let args = remote::StorageVolDownloadArgs { vol: vol.clone(), offset: 0, length: 0, flags: 0 };
    let serial = begin::<Down>(wire, &args);
    let mut got = 0;
    let took = micros(|| {
        loop {
            let frame = wire.receive().expect("the daemon sends");
            assert_eq!(frame.header.status, Status::CONTINUE);
            if frame.payload.is_empty() {
                break;
            }
            got += frame.payload.len() as u64;
        }
    });
    assert_eq!(got, SIZE);
    wire.send(&frame(header::<Down>(serial, Status::OK), &[])).expect("the daemon reads");
    wire.receive().expect("the daemon confirms");
    rate(SIZE, took)
}

/// By virsh, which finds the holes of what it sends and makes those of what it gets.
fn sparse(daemon: &Daemon, put: &mut dyn FnMut(&'static str, f64)) {
    let (from, back) = (daemon.path("sparse"), daemon.path("back"));
    let file = File::create(&from).expect("the root is ours");
    file.set_len(SPARSE).expect("a sparse file");
    for at in (0..SPARSE).step_by(EVERY as usize) {
        file.write_all_at(&vec![at.to_le_bytes()[3]; DATA], at).expect("the disk takes it");
    }
    daemon.ok(&["vol-create-as", "streams", "sparse", "2G", "--allocation", "0"]);
    let path = |path: &Path| path.display().to_string();
    let up = ["vol-upload", "sparse", &path(&from), "streams", "--sparse"];
    put("upload-sparse", rate(SPARSE, micros(|| drop(daemon.ok(&up)))));
    let down = ["vol-download", "sparse", &path(&back), "streams", "--sparse"];
    put("download-sparse", rate(SPARSE, micros(|| drop(daemon.ok(&down)))));
    same(&from, &back);
    same(&from, &daemon.path("streams/sparse"));
}

/// Byte for byte, and not a block more than the holes leave.
fn same(one: &Path, other: &Path) {
    let (mut left, mut right) = (open_file(one), open_file(other));
    let blocks = |file: &File| file.metadata().expect("it is open").blocks();
    assert!(blocks(&right) <= blocks(&left) + 64, "{} has lost its holes", other.display());
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for _ in 0..SPARSE >> 20 {
        left.read_exact(&mut a).expect("it is as long");
        right.read_exact(&mut b).expect("it is as long");
        assert!(a == b, "{} is not what was sent", other.display());
    }
}

fn open_file(path: &Path) -> File {
    File::open(path).expect("it was written")
}

/// The same bytes without a daemon: from memory into a file, and back.
pub(crate) fn floor(directory: &Path, put: &mut dyn FnMut(&'static str, f64)) {
    let path = directory.join("copy");
    let mut buffer = vec![7; 1 << 20];
    let (mut up, mut down) = (0f64, 0f64);
    for _ in 0..3 {
        let mut file = File::create(&path).expect("the directory is ours");
        let took =
            micros(|| (0..SIZE >> 20).for_each(|_| file.write_all(&buffer).expect("the disk takes it")));
        up = up.max(rate(SIZE, took));
        let mut file = open_file(&path);
        let took = micros(|| while file.read(&mut buffer).expect("it is there") > 0 {});
        down = down.max(rate(SIZE, took));
    }
    put("upload", up);
    put("download", down);
    fs::remove_file(&path).expect("the directory is ours");
}
