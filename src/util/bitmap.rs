//! Sets of small numbers: CPUs, NUMA nodes, vCPUs.
//!
//! Two written forms: libvirt's list syntax (`0-3,^2,8`) in XML, and a little-endian bit string (CPU n is
//! bit n%8 of byte n/8) on the wire.

use std::fmt;

use thiserror::Error;

/// No set holds a number from here on: what a hostile `0-4294967295` may allocate is bounded.
pub const MAX_BITS: usize = 64 * 1024;

/// A set of numbers below [`MAX_BITS`]. Equal sets compare equal, however they came about.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Bitmap {
    /// Never ends in a zero word.
    words: Vec<u64>,
}

/// A text that is no set, or one with numbers that are too large. The text is libvirt's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("Failed to parse bitmap '{text}'")]
pub struct BitmapError {
    pub text: String,
}

impl Bitmap {
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads list syntax: comma between `N`, `N-M`, and `^N` which takes N out again. Every number,
    /// the ones taken out too, is below `len`. An empty text is an error.
    pub fn parse(text: &str, len: usize) -> Result<Self, BitmapError> {
        let mut bitmap = Self::new();
        bitmap.parse_items(text, len.min(MAX_BITS)).ok_or_else(|| BitmapError { text: text.to_owned() })?;
        Ok(bitmap)
    }

    fn parse_items(&mut self, text: &str, len: usize) -> Option<()> {
        let number = |text: &str| {
            let text = text.trim_ascii();
            let digits = !text.is_empty() && text.bytes().all(|char| char.is_ascii_digit());
            text.parse().ok().filter(|number| digits && *number < len)
        };
        // As libvirt reads it, one comma may stand at the end.
        let text = text.trim_ascii();
        for item in text.strip_suffix(',').unwrap_or(text).split(',') {
            match (item.trim_ascii().strip_prefix('^'), item.split_once('-')) {
                (Some(removed), _) => self.remove(number(removed)?),
                (None, Some((first, last))) => {
                    let (first, last) = (number(first)?, number(last)?);
                    (first <= last).then_some(())?;
                    (first..=last).for_each(|bit| self.insert(bit));
                }
                (None, None) => self.insert(number(item)?),
            }
        }
        Some(())
    }

    /// Reads the wire form; what lies beyond [`MAX_BITS`] is ignored.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let bits = bytes.iter().take(MAX_BITS / 8).enumerate();
        bits.flat_map(|(at, byte)| {
            (0..8).filter(move |bit| byte >> bit & 1 != 0).map(move |bit| at * 8 + bit)
        })
        .collect()
    }

    /// The wire form in exactly `len` bytes; what does not fit is left out.
    pub fn to_bytes(&self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(len, 0);
        bytes
    }

    /// Puts `bit` in; numbers from [`MAX_BITS`] on are ignored.
    pub fn insert(&mut self, bit: usize) {
        if bit >= MAX_BITS {
            return;
        }
        if self.words.len() <= bit / 64 {
            self.words.resize(bit / 64 + 1, 0);
        }
        self.words[bit / 64] |= 1 << (bit % 64);
    }

    pub fn remove(&mut self, bit: usize) {
        if let Some(word) = self.words.get_mut(bit / 64) {
            *word &= !(1 << (bit % 64));
        }
        while self.words.last() == Some(&0) {
            self.words.pop();
        }
    }

    pub fn contains(&self, bit: usize) -> bool {
        self.words.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 != 0)
    }

    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// How many numbers are in.
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The largest number that is in.
    pub fn last(&self) -> Option<usize> {
        let word = self.words.last()?;
        Some(self.words.len() * 64 - 1 - word.leading_zeros() as usize)
    }

    /// The numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.words.len() * 64).filter(|bit| self.contains(*bit))
    }
}

impl FromIterator<usize> for Bitmap {
    fn from_iter<I: IntoIterator<Item = usize>>(bits: I) -> Self {
        let mut bitmap = Self::new();
        bits.into_iter().for_each(|bit| bitmap.insert(bit));
        bitmap
    }
}

/// List syntax in its shortest form; nothing for the empty set.
impl fmt::Display for Bitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bits = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = bits.next() {
            let mut last = first;
            while let Some(next) = bits.next_if_eq(&(last + 1)) {
                last = next;
            }
            match first == last {
                true => write!(f, "{separator}{first}")?,
                false => write!(f, "{separator}{first}-{last}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

impl fmt::Debug for Bitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn list_syntax_reads_and_prints_shortest() {
        for (text, printed) in [
            ("0", "0"),
            ("0-3,^2,8", "0-1,3,8"),
            (" 1 , 2 - 4 ", "1-4"),
            ("5,4,3", "3-5"),
            ("0-0", "0"),
            ("3,", "3"),
            ("63-65", "63-65"),
            ("1,^1", ""),
        ] {
            assert_eq!(Bitmap::parse(text, 100).unwrap().to_string(), printed, "{text}");
        }
    }

    #[test]
    fn what_is_no_set_is_refused() {
        for text in
            ["", " ", ",", "a", "-1", "3-1", "1-", "^1-2", "1,,2", "1 2", "100", "0-100", "^100", "+1"]
        {
            let error = Bitmap::parse(text, 100).unwrap_err();
            assert_eq!(error.to_string(), format!("Failed to parse bitmap '{text}'"));
        }
        assert!(Bitmap::parse("0-4294967295", usize::MAX).is_err());
    }

    #[test]
    fn the_wire_form_has_the_asked_length() {
        let bitmap = Bitmap::parse("0,9", 16).unwrap();
        assert_eq!(bitmap.to_bytes(1), [1]);
        assert_eq!(bitmap.to_bytes(3), [1, 2, 0]);
        assert_eq!(Bitmap::from_bytes(&[1, 2, 0]), bitmap);
    }

    proptest! {
        #[test]
        fn both_forms_survive_a_round_trip(bits in proptest::collection::btree_set(0usize..300, 0..40)) {
            let bitmap: Bitmap = bits.iter().copied().collect();
            prop_assert_eq!(bitmap.iter().collect::<Vec<_>>(), bits.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(bitmap.count(), bits.len());
            prop_assert_eq!(bitmap.last(), bits.last().copied());
            prop_assert_eq!(&Bitmap::from_bytes(&bitmap.to_bytes(38)), &bitmap);
            if !bits.is_empty() {
                prop_assert_eq!(&Bitmap::parse(&bitmap.to_string(), 300).unwrap(), &bitmap);
            }
        }
    }
}
