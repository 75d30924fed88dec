//! The bits that a processor answers about itself.

use std::collections::BTreeMap;

use crate::conf::capabilities::host::Signature;

/// Where four registers' worth of bits come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    Cpuid {
        leaf: u32,
        subleaf: u32,
    },
    /// A model specific register; its low half is the first value, its high half the last.
    Msr(u32),
}

const VENDOR: Place = Place::Cpuid { leaf: 0, subleaf: 0 };
const SIGNATURE: Place = Place::Cpuid { leaf: 1, subleaf: 0 };

/// Bits by place, as eax, ebx, ecx, edx.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuData(BTreeMap<Place, [u32; 4]>);

impl CpuData {
    /// Sets the bits that `bits` has at `place`.
    pub fn set(&mut self, place: Place, bits: [u32; 4]) {
        let known = self.0.entry(place).or_default();
        known.iter_mut().zip(bits).for_each(|(known, bits)| *known |= bits);
    }

    pub(super) fn add(&mut self, other: &Self) {
        other.0.iter().for_each(|(place, bits)| self.set(*place, *bits));
    }

    pub(super) fn subtract(&mut self, other: &Self) {
        for (place, bits) in &other.0 {
            if let Some(known) = self.0.get_mut(place) {
                known.iter_mut().zip(bits).for_each(|(known, bits)| *known &= !bits);
            }
        }
    }

    pub fn contains(&self, other: &Self) -> bool {
        other.0.iter().all(|(place, bits)| {
            let known = self.0.get(place).copied().unwrap_or_default();
            known.iter().zip(bits).all(|(known, bits)| known & bits == *bits)
        })
    }

    pub(super) fn intersect(&mut self, other: &Self) {
        for (place, known) in &mut self.0 {
            let bits = other.0.get(place).copied().unwrap_or_default();
            known.iter_mut().zip(bits).for_each(|(known, bits)| *known &= bits);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.values().flatten().all(|bits| *bits == 0)
    }

    pub(super) fn places(&self) -> impl Iterator<Item = Place> + '_ {
        self.0.keys().copied()
    }

    /// The twelve characters that x86 processors name their maker with.
    pub fn set_vendor(&mut self, name: &str) {
        let mut words = name
            .as_bytes()
            .chunks_exact(4)
            .map(|word| word.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte)));
        if let (Some(ebx), Some(edx), Some(ecx)) = (words.next(), words.next(), words.next()) {
            self.set(VENDOR, [0, ebx, ecx, edx]);
        }
    }

    pub fn set_signature(&mut self, signature: Signature) {
        let Signature { family, model, stepping } = signature;
        let extended = family.saturating_sub(0xf).min(0xff) << 20;
        let bits =
            extended | (model >> 4 & 0xf) << 16 | family.min(0xf) << 8 | (model & 0xf) << 4 | stepping & 0xf;
        self.set(SIGNATURE, [bits, 0, 0, 0]);
    }

    pub(super) fn signature(&self) -> Option<Signature> {
        let [bits, ..] = *self.0.get(&SIGNATURE)?;
        Some(Signature {
            family: (bits >> 20 & 0xff) + (bits >> 8 & 0xf),
            model: (bits >> 12 & 0xf0) + (bits >> 4 & 0xf),
            stepping: bits & 0xf,
        })
        .filter(|signature| signature.family > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_comes_back_as_it_went_in() {
        for (family, model, stepping) in [(6, 63, 2), (25, 17, 1), (15, 107, 1)] {
            let mut data = CpuData::default();
            let signature = Signature { family, model, stepping };
            data.set_signature(signature);
            assert_eq!(data.signature(), Some(signature));
        }
        let mut genoa = CpuData::default();
        genoa.set_signature(Signature { family: 25, model: 17, stepping: 1 });
        assert_eq!(genoa.0.get(&SIGNATURE), Some(&[0x00a1_0f11, 0, 0, 0]));
    }

    #[test]
    fn bits_are_added_taken_and_compared() {
        let place = Place::Cpuid { leaf: 7, subleaf: 0 };
        let bits = |ebx| {
            let mut data = CpuData::default();
            data.set(place, [0, ebx, 0, 0]);
            data
        };
        let mut data = bits(0b110);
        assert!(data.contains(&bits(0b100)) && !data.contains(&bits(0b1)));
        data.add(&bits(0b1));
        data.subtract(&bits(0b100));
        assert_eq!(data, bits(0b011));
        let mut vendor = CpuData::default();
        vendor.set_vendor("AuthenticAMD");
        assert_eq!(vendor.0.get(&VENDOR), Some(&[0, 0x6874_7541, 0x444d_4163, 0x6974_6e65]));
    }
}
