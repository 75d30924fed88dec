//! Storage volumes: made, described, changed, streamed.

use bytes::Bytes;
use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;

use crate::drivers::storage::flags::{CallFlags, InfoFlags, no_flags};
use crate::drivers::storage::pool::PoolState;
use crate::drivers::storage::transfer::Part;
use crate::drivers::storage::{Download, Upload, VolumeRef};
use crate::error::Result;
use crate::rpc::access::driver::Object;
use crate::rpc::convert;
use crate::rpc::router::{Call, Routes, Streamed};
use crate::rpc::stream::{Closing, MAX_DATA, Piece, Pipe, Silent, Sink, Source};
use crate::util::uuid::Uuid;

pub fn routes(r: &mut Routes) {
    r.on::<StoragePoolNumOfVolumes>(num_of_volumes);
    r.on::<StoragePoolListVolumes>(list_volumes);
    r.on::<StoragePoolListAllVolumes>(list_all_volumes);
    r.on::<StorageVolLookupByName>(lookup_by_name);
    r.on::<StorageVolLookupByKey>(lookup_by_key);
    r.on::<StorageVolLookupByPath>(lookup_by_path);
    r.on::<StorageVolCreateXml>(create_xml);
    r.on::<StorageVolCreateXmlFrom>(create_xml_from);
    r.on::<StorageVolDelete>(delete);
    r.on::<StorageVolWipePattern>(wipe_pattern);
    r.older::<StorageVolWipe, StorageVolWipePattern>(|args| StorageVolWipePatternArgs {
        vol: args.vol,
        algorithm: 0,
        flags: args.flags,
    });
    r.on::<StorageVolResize>(resize);
    r.on::<StorageVolGetInfoFlags>(get_info_flags);
    r.older_with::<StorageVolGetInfo, StorageVolGetInfoFlags>(
        |args| StorageVolGetInfoFlagsArgs { vol: args.vol, flags: 0 },
        |ret| StorageVolGetInfoRet { r#type: ret.r#type, capacity: ret.capacity, allocation: ret.allocation },
    );
    r.on::<StorageVolGetXmlDesc>(get_xml_desc);
    r.on::<StorageVolGetPath>(get_path);
    r.on_stream::<StorageVolUpload>(upload);
    r.on_stream::<StorageVolDownload>(download);
}

/// The volumes of a pool that the client may see.
async fn visible(call: &Call, state: &PoolState) -> Vec<VolumeRef> {
    let volumes = state.volumes.values();
    let volumes = volumes.map(|record| VolumeRef::of(&state.current.name, &record.volume)).collect();
    let pool = state.current.uuid;
    call.visible(volumes, |volume| Object::StorageVol { volume: volume.clone(), pool }).await
}

async fn num_of_volumes(call: Call, args: StoragePoolNumOfVolumesArgs) -> Result<StoragePoolNumOfVolumesRet> {
    let state = call.drivers.storage.state(Uuid(args.pool.uuid), &args.pool.name)?;
    state.require_active()?;
    let num = visible(&call, &state).await.len();
    Ok(StoragePoolNumOfVolumesRet { num: i32::try_from(num).unwrap_or(i32::MAX) })
}

async fn list_volumes(call: Call, args: StoragePoolListVolumesArgs) -> Result<StoragePoolListVolumesRet> {
    let state = call.drivers.storage.state(Uuid(args.pool.uuid), &args.pool.name)?;
    state.require_active()?;
    let max = usize::try_from(args.maxnames).unwrap_or(0);
    let volumes = visible(&call, &state).await;
    let names = volumes.into_iter().take(max).map(|volume| volume.name).collect();
    Ok(StoragePoolListVolumesRet { names })
}

async fn list_all_volumes(
    call: Call,
    args: StoragePoolListAllVolumesArgs,
) -> Result<StoragePoolListAllVolumesRet> {
    let state = call.drivers.storage.state(Uuid(args.pool.uuid), &args.pool.name)?;
    no_flags(args.flags, "storagePoolListAllVolumes")?;
    state.require_active()?;
    let volumes = visible(&call, &state).await;
    let ret = u32::try_from(volumes.len()).unwrap_or(u32::MAX);
    let wanted = volumes.into_iter().filter(|_| args.need_results != 0);
    let vols = wanted.map(convert::volume).collect();
    Ok(StoragePoolListAllVolumesRet { vols, ret })
}

async fn lookup_by_name(call: Call, args: StorageVolLookupByNameArgs) -> Result<StorageVolLookupByNameRet> {
    let vol = call.drivers.storage.volume_by_name((Uuid(args.pool.uuid), &args.pool.name), &args.name)?;
    Ok(StorageVolLookupByNameRet { vol: convert::volume(vol) })
}

async fn lookup_by_key(call: Call, args: StorageVolLookupByKeyArgs) -> Result<StorageVolLookupByKeyRet> {
    Ok(StorageVolLookupByKeyRet { vol: convert::volume(call.drivers.storage.volume_by_key(&args.key)?) })
}

async fn lookup_by_path(call: Call, args: StorageVolLookupByPathArgs) -> Result<StorageVolLookupByPathRet> {
    Ok(StorageVolLookupByPathRet { vol: convert::volume(call.drivers.storage.volume_by_path(&args.path)?) })
}

async fn create_xml(call: Call, args: StorageVolCreateXmlArgs) -> Result<StorageVolCreateXmlRet> {
    let (uuid, pool) = (Uuid(args.pool.uuid), &args.pool.name);
    let vol = call.drivers.storage.create_volume(uuid, pool, &args.xml, args.flags).await?;
    Ok(StorageVolCreateXmlRet { vol: convert::volume(vol) })
}

async fn create_xml_from(
    call: Call,
    args: StorageVolCreateXmlFromArgs,
) -> Result<StorageVolCreateXmlFromRet> {
    let pool = (Uuid(args.pool.uuid), &*args.pool.name);
    let original = convert::volume_ref(args.clonevol);
    let vol = call.drivers.storage.clone_volume(pool, &args.xml, &original, args.flags).await?;
    Ok(StorageVolCreateXmlFromRet { vol: convert::volume(vol) })
}

async fn delete(call: Call, args: StorageVolDeleteArgs) -> Result<()> {
    call.drivers.storage.delete_volume(&convert::volume_ref(args.vol), args.flags).await
}

async fn wipe_pattern(call: Call, args: StorageVolWipePatternArgs) -> Result<()> {
    let volume = convert::volume_ref(args.vol);
    call.drivers.storage.wipe_volume(&volume, args.algorithm, args.flags).await
}

async fn resize(call: Call, args: StorageVolResizeArgs) -> Result<()> {
    let volume = convert::volume_ref(args.vol);
    call.drivers.storage.resize_volume(&volume, args.capacity, args.flags).await
}

async fn get_info_flags(call: Call, args: StorageVolGetInfoFlagsArgs) -> Result<StorageVolGetInfoFlagsRet> {
    let flags = InfoFlags::accept(args.flags)?;
    let volume = call.drivers.storage.fresh_volume(&convert::volume_ref(args.vol)).await?;
    let allocation = if flags.contains(InfoFlags::PHYSICAL) { volume.physical } else { volume.allocation };
    Ok(StorageVolGetInfoFlagsRet { r#type: volume.kind.number(), capacity: volume.capacity, allocation })
}

async fn get_xml_desc(call: Call, args: StorageVolGetXmlDescArgs) -> Result<StorageVolGetXmlDescRet> {
    no_flags(args.flags, "storageVolGetXMLDesc")?;
    let volume = call.drivers.storage.fresh_volume(&convert::volume_ref(args.vol)).await?;
    Ok(StorageVolGetXmlDescRet { xml: volume.to_xml() })
}

async fn get_path(call: Call, args: StorageVolGetPathArgs) -> Result<StorageVolGetPathRet> {
    let name = call.drivers.storage.volume_path(&convert::volume_ref(args.vol))?;
    Ok(StorageVolGetPathRet { name })
}

async fn upload(call: Call, args: StorageVolUploadArgs) -> Result<Streamed<()>> {
    let volume = convert::volume_ref(args.vol);
    let upload = call.drivers.storage.upload(&volume, (args.offset, args.length), args.flags).await?;
    Ok(Streamed { ret: (), pipe: Pipe::new(Silent, Incoming(upload)) })
}

async fn download(call: Call, args: StorageVolDownloadArgs) -> Result<Streamed<()>> {
    let volume = convert::volume_ref(args.vol);
    let download = call.drivers.storage.download(&volume, (args.offset, args.length), args.flags).await?;
    Ok(Streamed { ret: (), pipe: Pipe::new(Outgoing { download, rest: Bytes::new() }, Closing) })
}

/// An upload as the end of a stream.
struct Incoming(Upload);

impl Sink for Incoming {
    async fn take(&mut self, piece: Piece) -> Result<()> {
        match piece {
            Piece::Data(data) => self.0.write(data).await,
            Piece::Hole(len) => self.0.skip(len).await,
        }
    }

    async fn finish(&mut self) -> Result<()> {
        self.0.finish().await
    }
}

/// A download as the beginning of a stream: its pieces are larger than a frame.
struct Outgoing {
    download: Download,
    rest: Bytes,
}

impl Source for Outgoing {
    async fn next(&mut self) -> Result<Option<Piece>> {
        if self.rest.is_empty() {
            match self.download.next().await? {
                None => return Ok(None),
                Some(Part::Hole(len)) => return Ok(Some(Piece::Hole(len))),
                Some(Part::Data(data)) => self.rest = data.into(),
            }
        }
        let len = self.rest.len().min(MAX_DATA);
        Ok(Some(Piece::Data(self.rest.split_to(len))))
    }
}
