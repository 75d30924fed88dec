//! What a started QEMU says about itself, taken into the live definition.

use super::start::Failure;
use super::{Domains, memory_devices};
use crate::conf::domain::{CpuCheck, CpuMode, Domain};
use crate::error::Error;
use crate::qemu::capabilities::CpuArguments;
use crate::qemu::monitor::Monitor;

impl Domains {
    /// Completes the live definition with what QEMU made of it, before anybody sees it run.
    pub(super) async fn refresh(
        &self,
        live: &mut Domain,
        arguments: &CpuArguments,
        monitor: &Monitor,
        boot_cpu: &str,
    ) -> Result<(), Failure> {
        self.refresh_cpu(live, arguments, monitor, boot_cpu).await?;
        memory_devices::note_places(monitor, &mut live.devices.memories).await?;
        live.memory.current_kib = memory_devices::current_kib(monitor, live).await?;
        Ok(())
    }

    /// The definition names every feature that the guest has beyond its model, or lacks of it.
    async fn refresh_cpu(
        &self,
        live: &mut Domain,
        arguments: &CpuArguments,
        monitor: &Monitor,
        boot_cpu: &str,
    ) -> Result<(), Failure> {
        let Some(cpu) = live.cpu.as_mut() else { return Ok(()) };
        let is_named = cpu.mode == CpuMode::Custom && cpu.model.is_some();
        if !is_named && cpu.check != Some(CpuCheck::Full) {
            return Ok(());
        }
        let emulator = live.devices.emulator.as_deref().unwrap_or_default();
        let caps = self.emulators.lookup(emulator.as_ref()).await.map_err(Error::from)?;
        let Some(map) = self.emulators.cpu_map().filter(|_| caps.arch.is_x86()) else { return Ok(()) };
        let given = caps.given_cpu(monitor, arguments, boot_cpu, &map).await?;
        map.refresh(cpu, &given).map_err(Error::from)?;
        Ok(())
    }
}
