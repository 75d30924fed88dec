//! How values lie on disk: encrypted as libvirt 12.1 does it, with a key that the daemon's user alone can read.
//!
//! `UUID.aes256cbc` is base64 of sixteen random bytes and the value behind them, so that a libvirt that knows the
//! form reads it with `secrets_encryption_key` pointing to our key. An older one reads `UUID.base64` only, and so do
//! we where that is there: what it wrote stays as it is until the value is set again.

use std::io;
use std::path::Path;

use aes::Aes256;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockDecryptMut, BlockEncryptMut, KeyIvInit};
use zeroize::{Zeroize, Zeroizing};

use super::Value;
use crate::util::file::{self, Durability};
use crate::util::random;

const KEY_LEN: usize = 32;
const VECTOR_LEN: usize = 16;

/// What values are encrypted with.
pub(super) struct Key(Zeroizing<[u8; KEY_LEN]>);

impl Key {
    /// The key in this file.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let content = Zeroizing::new(file::read_at_most(path, KEY_LEN as u64)?);
        let key = <[u8; KEY_LEN]>::try_from(&**content);
        key.map(|key| Self(Zeroizing::new(key))).map_err(|_| {
            let what = format!("'{}' is no key: it must have {KEY_LEN} bytes", path.display());
            io::Error::new(io::ErrorKind::InvalidData, what)
        })
    }

    /// The same; a new one if there is none.
    pub(super) fn read_or_make(path: &Path) -> io::Result<Self> {
        match Self::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            read => return read,
        }
        let mut key = Zeroizing::new([0; KEY_LEN]);
        random::fill(&mut *key)?;
        if let Some(directory) = path.parent() {
            file::make_directory(directory, 0o700)?;
        }
        file::replace(path, &*key, 0o600, Durability::PowerCut)?;
        Ok(Self(key))
    }

    pub(super) fn encrypt(&self, value: &[u8]) -> io::Result<String> {
        let mut vector = [0; VECTOR_LEN];
        random::fill(&mut vector)?;
        let cipher = cbc::Encryptor::<Aes256>::new(&(*self.0).into(), &vector.into());
        let data = cipher.encrypt_padded_vec_mut::<Pkcs7>(value);
        wipe_stack();
        Ok(STANDARD.encode([&vector[..], &data].concat()))
    }

    /// None for what this key did not encrypt.
    pub(super) fn decrypt(&self, text: &[u8]) -> Option<Value> {
        let bytes = STANDARD.decode(text.trim_ascii()).ok()?;
        let (vector, data) = bytes.split_first_chunk::<VECTOR_LEN>()?;
        let cipher = cbc::Decryptor::<Aes256>::new(&(*self.0).into(), vector.into());
        let value = cipher.decrypt_padded_vec_mut::<Pkcs7>(data).ok().map(Value::new);
        wipe_stack();
        value
    }
}

/// Overwrites what the cipher leaves on the stack, where it has been deeper than its caller: blocks in the clear.
#[inline(never)]
fn wipe_stack() {
    [0; 32 * 1024].zeroize();
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_comes_back_with_its_key_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/key");
        let key = Key::read_or_make(&path).unwrap();
        let (one, other) = (key.encrypt(b"hunter2").unwrap(), key.encrypt(b"hunter2").unwrap());
        assert_ne!(one, other, "nobody sees that two values are the same");
        let again = Key::read_or_make(&path).unwrap();
        assert_eq!(&*again.decrypt(one.as_bytes()).unwrap(), b"hunter2");
        let stranger = Key::read_or_make(&directory.path().join("other")).unwrap();
        assert_ne!(stranger.decrypt(one.as_bytes()).as_deref(), Some(&b"hunter2"[..]));
        for broken in ["", "AAAA", "not base64", &one[..one.len() - 8]] {
            assert_eq!(key.decrypt(broken.as_bytes()), None, "{broken}");
        }
        std::fs::write(&path, "short").unwrap();
        assert!(Key::read_or_make(&path).is_err(), "it is not replaced");
    }

    /// As OpenSSL encrypts: echo -n hunter2 | openssl enc -aes-256-cbc -K 00…00 -iv 00…00
    #[test]
    fn values_of_libvirt_are_read() {
        let key = Key(Zeroizing::new([0; KEY_LEN]));
        let cipher = "AAAAAAAAAAAAAAAAAAAAALvsz9lStJMlV4/QMaceF3I=";
        assert_eq!(key.decrypt(cipher.as_bytes()).as_deref(), Some(&b"hunter2"[..]));
    }
}
