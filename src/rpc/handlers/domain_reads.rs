//! What a domain is: answers from its state, without a job.

use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;

use super::domain::{referred, state};
use super::domain_usage::maps;
use crate::drivers::domain::flags::{VcpuFlags, no_flags};
use crate::drivers::domain::job_info::JobInfo;
use crate::drivers::domain::reads;
use crate::error::Result;
use crate::rpc::convert;
use crate::rpc::router::{Call, Routes};

pub fn routes(r: &mut Routes) {
    r.on::<DomainGetInfo>(get_info);
    r.on::<DomainGetState>(get_state);
    r.on::<DomainGetXmlDesc>(get_xml_desc);
    r.on::<DomainGetOsType>(get_os_type);
    r.on::<DomainGetMaxMemory>(get_max_memory);
    r.on::<DomainGetMaxVcpus>(get_max_vcpus);
    r.on::<DomainGetVcpusFlags>(get_vcpus_flags);
    r.on::<DomainGetVcpus>(get_vcpus);
    r.on::<DomainIsActive>(is_active);
    r.on::<DomainIsPersistent>(is_persistent);
    r.on::<DomainIsUpdated>(is_updated);
    r.on::<DomainGetControlInfo>(get_control_info);
    r.on::<DomainGetMetadata>(get_metadata);
    r.on::<DomainGetMessages>(get_messages);
    r.on::<DomainHasManagedSaveImage>(has_managed_save_image);
    r.on::<DomainGetSecurityLabel>(get_security_label);
    r.on::<DomainGetSecurityLabelList>(get_security_label_list);
    r.on::<DomainGetJobInfo>(get_job_info);
    r.on::<DomainGetJobStats>(get_job_stats);
}

async fn get_info(call: Call, args: DomainGetInfoArgs) -> Result<DomainGetInfoRet> {
    let info = reads::info(&*state(&call, &args.dom)?)?;
    Ok(DomainGetInfoRet {
        state: u8::try_from(info.state).unwrap_or(0),
        max_mem: info.max_memory_kib,
        memory: info.memory_kib,
        nr_virt_cpu: u16::try_from(info.vcpus).unwrap_or(u16::MAX),
        cpu_time: nanoseconds(info.cpu_time),
    })
}

async fn get_state(call: Call, args: DomainGetStateArgs) -> Result<DomainGetStateRet> {
    no_flags(args.flags, "qemuDomainGetState")?;
    let (state, reason) = state(&call, &args.dom)?.run.numbers();
    Ok(DomainGetStateRet { state, reason })
}

async fn get_xml_desc(call: Call, args: DomainGetXmlDescArgs) -> Result<DomainGetXmlDescRet> {
    if reads::shows_secrets(args.flags) {
        call.require_writable_for("virDomainGetXMLDesc with secure flag")?;
    }
    let xml = reads::xml(&*state(&call, &args.dom)?, args.flags)?;
    Ok(DomainGetXmlDescRet { xml })
}

async fn get_os_type(call: Call, args: DomainGetOsTypeArgs) -> Result<DomainGetOsTypeRet> {
    Ok(DomainGetOsTypeRet { r#type: reads::os_type(&*state(&call, &args.dom)?)?.to_owned() })
}

async fn get_max_memory(call: Call, args: DomainGetMaxMemoryArgs) -> Result<DomainGetMaxMemoryRet> {
    Ok(DomainGetMaxMemoryRet { memory: reads::definition(&*state(&call, &args.dom)?)?.memory.total_kib })
}

async fn get_max_vcpus(call: Call, args: DomainGetMaxVcpusArgs) -> Result<DomainGetMaxVcpusRet> {
    let flags = VcpuFlags::LIVE | VcpuFlags::MAXIMUM;
    Ok(DomainGetMaxVcpusRet { num: signed(reads::vcpu_count(&*state(&call, &args.dom)?, flags.bits())?) })
}

async fn get_vcpus_flags(call: Call, args: DomainGetVcpusFlagsArgs) -> Result<DomainGetVcpusFlagsRet> {
    /// `VIR_DOMAIN_VCPU_GUEST`: asks the agent inside, which counts as writing.
    const GUEST: u32 = 8;
    if args.flags & GUEST != 0 {
        call.require_writable()?;
        let domain = referred(&call, &args.dom)?;
        let num = call.drivers.domains.guest_vcpu_count(domain, args.flags).await?;
        return Ok(DomainGetVcpusFlagsRet { num: signed(num) });
    }
    Ok(DomainGetVcpusFlagsRet { num: signed(reads::vcpu_count(&*state(&call, &args.dom)?, args.flags)?) })
}

async fn get_vcpus(call: Call, args: DomainGetVcpusArgs) -> Result<DomainGetVcpusRet> {
    /// `VIR_VCPU_RUNNING`
    const RUNNING: i32 = 1;
    let (max, map_len) = maps(args.maxinfo, args.maplen, "maxinfo")?;
    let (vcpus, maps) = reads::vcpus(&*state(&call, &args.dom)?, max, map_len)?;
    let info = vcpus.iter().map(|vcpu| VcpuInfo {
        number: vcpu.number,
        state: RUNNING,
        cpu_time: nanoseconds(vcpu.cpu_time),
        cpu: vcpu.host_cpu,
    });
    Ok(DomainGetVcpusRet { info: info.collect(), cpumaps: maps })
}

async fn is_active(call: Call, args: DomainIsActiveArgs) -> Result<DomainIsActiveRet> {
    Ok(DomainIsActiveRet { active: state(&call, &args.dom)?.is_active().into() })
}

async fn is_persistent(call: Call, args: DomainIsPersistentArgs) -> Result<DomainIsPersistentRet> {
    Ok(DomainIsPersistentRet { persistent: state(&call, &args.dom)?.is_persistent().into() })
}

/// libvirt says so only of changes that its other drivers make.
async fn is_updated(call: Call, args: DomainIsUpdatedArgs) -> Result<DomainIsUpdatedRet> {
    state(&call, &args.dom)?;
    Ok(DomainIsUpdatedRet { updated: 0 })
}

async fn get_control_info(call: Call, args: DomainGetControlInfoArgs) -> Result<DomainGetControlInfoRet> {
    no_flags(args.flags, "qemuDomainGetControlInfo")?;
    let control = reads::control(&referred(&call, &args.dom)?)?;
    let state_time = u64::try_from(control.since.as_millis()).unwrap_or(u64::MAX);
    Ok(DomainGetControlInfoRet { state: control.state, details: control.details, state_time })
}

async fn get_messages(call: Call, args: DomainGetMessagesArgs) -> Result<DomainGetMessagesRet> {
    let domain = referred(&call, &args.dom)?;
    Ok(DomainGetMessagesRet { msgs: call.drivers.domains.messages(&domain, args.flags).await? })
}

async fn get_metadata(call: Call, args: DomainGetMetadataArgs) -> Result<DomainGetMetadataRet> {
    let state = state(&call, &args.dom)?;
    let metadata = reads::metadata(&state, args.r#type, args.uri.as_deref(), args.flags)?;
    Ok(DomainGetMetadataRet { metadata })
}

async fn has_managed_save_image(
    call: Call,
    args: DomainHasManagedSaveImageArgs,
) -> Result<DomainHasManagedSaveImageRet> {
    no_flags(args.flags, "qemuDomainHasManagedSaveImage")?;
    let state = state(&call, &args.dom)?;
    Ok(DomainHasManagedSaveImageRet { result: call.drivers.domains.has_managed_save(&state).into() })
}

/// That of the main security driver, which labels nobody.
async fn get_security_label(
    call: Call,
    args: DomainGetSecurityLabelArgs,
) -> Result<DomainGetSecurityLabelRet> {
    state(&call, &args.dom)?;
    Ok(DomainGetSecurityLabelRet { label: vec![0], enforcing: 0 })
}

async fn get_security_label_list(
    call: Call,
    args: DomainGetSecurityLabelListArgs,
) -> Result<DomainGetSecurityLabelListRet> {
    let labels = call.drivers.domains.security_labels(&*state(&call, &args.dom)?)?;
    let ret = signed(u32::try_from(labels.len()).unwrap_or(u32::MAX));
    let label =
        |text: String| DomainGetSecurityLabelRet { label: text.bytes().chain([0]).collect(), enforcing: 0 };
    Ok(DomainGetSecurityLabelListRet { labels: labels.into_iter().map(label).collect(), ret })
}

async fn get_job_info(call: Call, args: DomainGetJobInfoArgs) -> Result<DomainGetJobInfoRet> {
    let domain = referred(&call, &args.dom)?;
    let JobInfo { kind, elapsed_ms, data, memory, file } = call.drivers.domains.job_info(domain).await?;
    Ok(DomainGetJobInfoRet {
        r#type: kind,
        time_elapsed: elapsed_ms,
        time_remaining: 0,
        data_total: data.total,
        data_processed: data.processed,
        data_remaining: data.remaining,
        mem_total: memory.total,
        mem_processed: memory.processed,
        mem_remaining: memory.remaining,
        file_total: file.total,
        file_processed: file.processed,
        file_remaining: file.remaining,
    })
}

async fn get_job_stats(call: Call, args: DomainGetJobStatsArgs) -> Result<DomainGetJobStatsRet> {
    let domain = referred(&call, &args.dom)?;
    let (r#type, params) = call.drivers.domains.job_stats(domain, args.flags).await?;
    Ok(DomainGetJobStatsRet { r#type, params: convert::params(params) })
}

fn nanoseconds(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn signed(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
