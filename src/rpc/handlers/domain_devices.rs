//! What a guest's devices show and take: serial lines, screens, the monitor itself.

use ferrovirt_protocol::qemu;
use ferrovirt_protocol::remote::procedure::*;
use ferrovirt_protocol::remote::*;

use super::domain::referred;
use crate::drivers::domain::keyboard::Keys;
use crate::error::{Error, Result};
use crate::rpc::router::{Call, Routes, Streamed, WithDescriptors};
use crate::rpc::stream::Pipe;

pub fn routes(r: &mut Routes) {
    r.on_stream::<DomainOpenConsole>(open_console);
    r.on_stream::<DomainOpenChannel>(open_channel);
    r.on_stream::<DomainScreenshot>(screenshot);
    r.on::<DomainSendKey>(send_key);
    r.on::<DomainGraphicsReload>(reload_graphics);
    r.on_fds::<DomainOpenGraphics>(open_graphics);
    r.on_fds::<DomainOpenGraphicsFd>(open_graphics_fd);
    r.on_fds::<DomainFdAssociate>(associate);
    r.on::<qemu::procedure::DomainMonitorCommand>(monitor_command);
    r.on_fds::<qemu::procedure::DomainMonitorCommandWithFiles>(monitor_command_with_files);
}

async fn open_console(call: Call, args: DomainOpenConsoleArgs) -> Result<Streamed<()>> {
    let domain = referred(&call, &args.dom)?;
    let console = call.drivers.domains.open_console(&domain, args.dev_name.as_deref(), args.flags)?;
    Ok(Streamed { ret: (), pipe: Pipe::duplex(console) })
}

async fn open_channel(call: Call, args: DomainOpenChannelArgs) -> Result<Streamed<()>> {
    let domain = referred(&call, &args.dom)?;
    let channel = call.drivers.domains.open_channel(&domain, args.name.as_deref(), args.flags)?;
    Ok(Streamed { ret: (), pipe: Pipe::duplex(channel) })
}

async fn send_key(call: Call, args: DomainSendKeyArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    let keys = Keys { set: args.codeset, codes: args.keycodes, hold_ms: args.holdtime };
    call.drivers.domains.send_key(domain, keys, args.flags).await
}

async fn reload_graphics(call: Call, args: DomainGraphicsReloadArgs) -> Result<()> {
    let domain = referred(&call, &args.dom)?;
    call.drivers.domains.reload_graphics(domain, args.r#type, args.flags).await
}

async fn open_graphics(mut call: Call, args: DomainOpenGraphicsArgs) -> Result<WithDescriptors<()>> {
    let domain = referred(&call, &args.dom)?;
    let Some(socket) = call.take_fds().pop() else {
        return Err(Error::internal_error("No FD available at slot 0"));
    };
    call.drivers.domains.open_graphics(domain, args.idx, socket, args.flags).await?;
    Ok(WithDescriptors { ret: (), fds: Vec::new() })
}

async fn open_graphics_fd(call: Call, args: DomainOpenGraphicsFdArgs) -> Result<WithDescriptors<()>> {
    let domain = referred(&call, &args.dom)?;
    let socket = call.drivers.domains.open_graphics_fd(domain, args.idx, args.flags).await?;
    Ok(WithDescriptors { ret: (), fds: vec![socket] })
}

async fn screenshot(call: Call, args: DomainScreenshotArgs) -> Result<Streamed<DomainScreenshotRet>> {
    let domain = referred(&call, &args.dom)?;
    let picture = call.drivers.domains.screenshot(domain, args.screen, args.flags).await?;
    let ret = DomainScreenshotRet { mime: Some(picture.mime.to_owned()) };
    Ok(Streamed { ret, pipe: Pipe::down(picture.file) })
}

async fn associate(mut call: Call, args: DomainFdAssociateArgs) -> Result<WithDescriptors<()>> {
    let domain = referred(&call, &args.dom)?;
    let group = (&*args.name, call.take_fds());
    call.drivers.domains.associate(&domain.state(), call.client.id, group, args.flags)?;
    Ok(WithDescriptors { ret: (), fds: Vec::new() })
}

async fn monitor_command(
    call: Call,
    args: qemu::DomainMonitorCommandArgs,
) -> Result<qemu::DomainMonitorCommandRet> {
    let domain = referred(&call, &args.dom)?;
    let result = call.drivers.domains.monitor_command(domain, &args.cmd, Vec::new(), args.flags).await?;
    Ok(qemu::DomainMonitorCommandRet { result })
}

async fn monitor_command_with_files(
    mut call: Call,
    args: qemu::DomainMonitorCommandWithFilesArgs,
) -> Result<WithDescriptors<qemu::DomainMonitorCommandWithFilesRet>> {
    let domain = referred(&call, &args.dom)?;
    let fds = call.take_fds();
    let result = call.drivers.domains.monitor_command(domain, &args.cmd, fds, args.flags).await?;
    Ok(WithDescriptors { ret: qemu::DomainMonitorCommandWithFilesRet { result }, fds: Vec::new() })
}
