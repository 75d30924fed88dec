//! Processor architectures under the names libvirt uses in XML.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! arches {
    ($($variant:ident $name:literal $bits:literal;)*) => {
        /// A guest or host architecture (`virArch`), in libvirt's order.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "&'static str")]
        pub enum Arch { $($variant),* }

        impl Arch {
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// `<wordsize>`
            pub const fn bits(self) -> u32 {
                match self { $(Self::$variant => $bits),* }
            }
        }
    };
}

arches! {
    Alpha "alpha" 64;
    Armv6l "armv6l" 32;
    Armv7l "armv7l" 32;
    Armv7b "armv7b" 32;
    Aarch64 "aarch64" 64;
    Cris "cris" 32;
    I686 "i686" 32;
    Ia64 "ia64" 64;
    Lm32 "lm32" 32;
    Loongarch64 "loongarch64" 64;
    M68k "m68k" 32;
    Microblaze "microblaze" 32;
    Microblazeel "microblazeel" 32;
    Mips "mips" 32;
    Mipsel "mipsel" 32;
    Mips64 "mips64" 64;
    Mips64el "mips64el" 64;
    Openrisc "openrisc" 32;
    Parisc "parisc" 32;
    Parisc64 "parisc64" 64;
    Ppc "ppc" 32;
    Ppcle "ppcle" 32;
    Ppc64 "ppc64" 64;
    Ppc64le "ppc64le" 64;
    Ppcemb "ppcemb" 32;
    Riscv32 "riscv32" 32;
    Riscv64 "riscv64" 64;
    S390 "s390" 32;
    S390x "s390x" 64;
    Sh4 "sh4" 32;
    Sh4eb "sh4eb" 64;
    Sparc "sparc" 32;
    Sparc64 "sparc64" 64;
    Unicore32 "unicore32" 32;
    X86_64 "x86_64" 64;
    Xtensa "xtensa" 32;
    Xtensaeb "xtensaeb" 32;
}

impl Arch {
    /// The architecture of the host, from `uname -m`.
    pub fn host() -> Option<Self> {
        let uname = rustix::system::uname();
        Self::from_machine(uname.machine().to_str().ok()?)
    }

    /// The kernel's name of an architecture where it differs from libvirt's.
    fn from_machine(machine: &str) -> Option<Self> {
        match machine {
            "i386" | "i486" | "i586" => Some(Self::I686),
            "amd64" => Some(Self::X86_64),
            "arm64" => Some(Self::Aarch64),
            other => other.parse().ok(),
        }
    }

    /// What follows `qemu-system-` in the name of a binary.
    pub const fn qemu_target(self) -> &'static str {
        match self {
            Self::I686 => "i386",
            Self::Armv6l | Self::Armv7l => "arm",
            Self::Openrisc => "or32",
            other => other.as_str(),
        }
    }

    /// The architecture that `query-target` names.
    pub fn from_qemu_target(target: &str) -> Option<Self> {
        match target {
            "i386" => Some(Self::I686),
            "arm" => Some(Self::Armv7l),
            "or32" => Some(Self::Openrisc),
            other => other.parse().ok(),
        }
    }

    pub const fn is_x86(self) -> bool {
        matches!(self, Self::I686 | Self::X86_64)
    }

    pub const fn is_arm(self) -> bool {
        matches!(self, Self::Armv6l | Self::Armv7l | Self::Armv7b | Self::Aarch64)
    }

    pub const fn is_ppc(self) -> bool {
        matches!(self, Self::Ppc | Self::Ppcle | Self::Ppc64 | Self::Ppc64le | Self::Ppcemb)
    }

    pub const fn is_ppc64(self) -> bool {
        matches!(self, Self::Ppc64 | Self::Ppc64le)
    }

    pub const fn is_s390(self) -> bool {
        matches!(self, Self::S390 | Self::S390x)
    }

    /// Whether two architectures belong to one family, so that one emulator may serve both.
    pub const fn same_family(self, other: Self) -> bool {
        (self.is_x86() && other.is_x86())
            || (self.is_arm() && other.is_arm())
            || (self.is_ppc() && other.is_ppc())
            || (self.is_s390() && other.is_s390())
    }

    /// Whether a guest of architecture `guest` runs on this host without translation.
    pub fn runs_natively(self, guest: Self) -> bool {
        self == guest
            || matches!((self, guest), (Self::X86_64, Self::I686) | (Self::Aarch64, Self::Armv7l))
            || (self.is_ppc64() && guest.is_ppc64())
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name is none that libvirt knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown architecture: {0}")]
pub struct UnknownArch(pub String);

impl FromStr for Arch {
    type Err = UnknownArch;

    fn from_str(name: &str) -> Result<Self, UnknownArch> {
        Self::ALL
            .iter()
            .copied()
            .find(|arch| arch.as_str() == name)
            .ok_or_else(|| UnknownArch(name.to_owned()))
    }
}

impl TryFrom<String> for Arch {
    type Error = UnknownArch;

    fn try_from(name: String) -> Result<Self, UnknownArch> {
        name.parse()
    }
}

impl From<Arch> for &'static str {
    fn from(arch: Arch) -> Self {
        arch.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for arch in Arch::ALL {
            assert_eq!(arch.as_str().parse(), Ok(*arch));
        }
        assert_eq!("foo".parse::<Arch>().unwrap_err().to_string(), "unknown architecture: foo");
    }

    #[test]
    fn qemu_and_the_kernel_have_names_of_their_own() {
        assert_eq!(Arch::from_qemu_target("i386"), Some(Arch::I686));
        assert_eq!(Arch::from_qemu_target(Arch::Aarch64.qemu_target()), Some(Arch::Aarch64));
        assert_eq!(Arch::from_machine("i586"), Some(Arch::I686));
        assert_eq!(Arch::host().map(|host| host.runs_natively(host)), Some(true));
        assert!(Arch::X86_64.runs_natively(Arch::I686) && !Arch::I686.runs_natively(Arch::X86_64));
    }
}
