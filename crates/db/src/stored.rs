//! Bytes that may be sealed.

use std::fmt;

/// Bytes as a table holds them, sealed or as they are. Who opens and seals them is the vault; here
/// they only come and go.
#[derive(Clone, PartialEq, Eq)]
pub struct Stored {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// What sealed them; `None`: they are as they are.
    pub seal: Option<Seal>,
}

/// What sealed a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    /// The name of the installation's key.
    pub key_id: String,
    /// The value's own key, encrypted by that one.
    pub data_key: Vec<u8>,
}

impl Stored {
    /// What two columns that are NULL together say of the bytes in a third.
    #[must_use]
    pub fn new(bytes: Vec<u8>, key_id: Option<String>, data_key: Option<Vec<u8>>) -> Self {
        let seal = key_id.zip(data_key).map(|(key_id, data_key)| Seal { key_id, data_key });
        Self { bytes, seal }
    }

    /// The column `key_id`.
    #[must_use]
    pub fn key_id(&self) -> Option<&str> {
        self.seal.as_ref().map(|it| it.key_id.as_str())
    }

    /// The column `data_key`.
    #[must_use]
    pub fn data_key(&self) -> Option<&[u8]> {
        self.seal.as_ref().map(|it| it.data_key.as_slice())
    }
}

/// Bytes that are not sealed are a secret, so none are shown.
impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = self.bytes.len();
        f.debug_struct("Stored")
            .field("bytes", &length)
            .field("key_id", &self.key_id())
            .finish_non_exhaustive()
    }
}
