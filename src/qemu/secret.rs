//! Secrets on their way to QEMU: encrypted with a key that only this guest's QEMU and the daemon know.

use aes::Aes256;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockEncryptMut, KeyIvInit};

use super::command::Sealed;

/// The key, which QEMU reads from a file in the guest's own directory.
#[derive(Clone)]
pub struct MasterKey(pub [u8; Self::LEN]);

/// What makes two encrypted copies of a value differ.
pub type Vector = [u8; 16];

impl MasterKey {
    pub const LEN: usize = 32;

    /// Its name in the guest's directory.
    pub const FILE: &'static str = "master-key.aes";

    pub fn seal(&self, value: &[u8], vector: Vector) -> Sealed {
        let cipher = cbc::Encryptor::<Aes256>::new(&self.0.into(), &vector.into());
        let data = cipher.encrypt_padded_vec_mut::<Pkcs7>(value);
        Sealed { data: BASE64.encode(data), vector: BASE64.encode(vector) }
    }
}

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MasterKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As libvirt encrypts, with the numbers of its tests.
    #[test]
    fn values_are_encrypted_as_qemu_expects_them() {
        let key = MasterKey(std::array::from_fn(|at| at as u8));
        let vector = std::array::from_fn(|at| at as u8);
        let sealed = key.seal(b"AQCVn5hO6HzFAhAAq0NCv8jtJcIcE+HOBlMQ1A", vector);
        assert_eq!(sealed.vector, "AAECAwQFBgcICQoLDA0ODw==");
        assert_eq!(sealed.data, "9eao5F8qtkGt+seB1HYivWIxbtwUu6MQtg1zpj/oDtUsPr1q8wBYM91uEHCn6j/1");
    }
}
