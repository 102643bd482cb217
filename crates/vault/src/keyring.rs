//! The keyring: parse, seal, open, wrap anew.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

/// Bytes of a key.
const KEY_LEN: usize = 32;
/// Keys that a keyring may hold.
const KEYS_MAX: usize = 16;
/// Characters of a key's name.
const NAME_MAX: usize = 64;

/// Where a value is stored. A value opens only for the place that it was sealed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// The table.
    pub table: &'a str,
    /// The column.
    pub column: &'a str,
    /// What names the row.
    pub row: &'a str,
}

impl Place<'_> {
    /// What the encryption authenticates besides the value. Tables and columns have no `/`.
    fn associated(self) -> Vec<u8> {
        format!("{}/{}/{}", self.table, self.column, self.row).into_bytes()
    }
}

/// A value as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The name of the key that encrypted the data key.
    pub key_id: String,
    /// The value's own key, encrypted: 60 bytes.
    pub data_key: Vec<u8>,
    /// The value, encrypted: 16 bytes longer than it was.
    pub value: Vec<u8>,
}

/// Why a text makes no keyring. No variant repeats any of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// An entry without a colon, or with a name that is none.
    #[error(
        "encryption key {0} is not NAME:BASE64, with a NAME of 1 to {NAME_MAX} letters, digits, - or _"
    )]
    Shape(usize),
    /// Not base64, or another length.
    #[error(
        "encryption key {0} is not {KEY_LEN} bytes in base64: `berth server dbcrypt keygen` makes one"
    )]
    Length(usize),
    /// Two of one name.
    #[error("encryption key {0} has the name of an earlier one: names must differ")]
    Duplicate(usize),
    /// Too many.
    #[error("more than {KEYS_MAX} encryption keys: remove those that `dbcrypt rotate` made idle")]
    TooMany,
    /// The system has no randomness to give.
    #[error("the system's random number generator failed")]
    Random,
}

/// Why a value could not be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    /// No key is configured.
    #[error("no encryption key is configured: set encryption.keys")]
    NoKey,
    /// The value was sealed by a key that is not configured.
    #[error("the value was sealed by the key {0:?}, which is not in encryption.keys: put it back")]
    UnknownKey(String),
    /// The key is not the one it was, the bytes were changed, or they belong to another row.
    #[error(
        "a value sealed by the key {0:?} does not open: the key differs, or the value was changed or moved"
    )]
    Tampered(String),
    /// The system has no randomness to give.
    #[error("the system's random number generator failed")]
    Random,
}

struct Key {
    name: String,
    aead: LessSafeKey,
}

/// The installation's keys, in order: the first seals, all open.
///
/// Its text form is `NAME:BASE64` entries, separated by commas. Without any it seals nothing.
#[derive(Default)]
pub struct Keyring {
    keys: Vec<Key>,
    // Not an input: a nonce or a data key that a test could choose is one that could repeat.
    random: Option<SystemRandom>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|it| &it.name)).finish()
    }
}

impl FromStr for Keyring {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let mut keys: Vec<Key> = Vec::new();
        let entries = text.split([',', '\n']).map(str::trim).filter(|it| !it.is_empty());
        for (position, entry) in entries.enumerate().map(|(index, it)| (index + 1, it)) {
            if position > KEYS_MAX {
                return Err(KeyError::TooMany);
            }
            let (name, encoded) = entry.split_once(':').ok_or(KeyError::Shape(position))?;
            if !is_name(name) {
                return Err(KeyError::Shape(position));
            }
            if keys.iter().any(|it| it.name == name) {
                return Err(KeyError::Duplicate(position));
            }
            let bytes = STANDARD.decode(encoded).map_err(|_| KeyError::Length(position))?;
            let aead = aead(&bytes).ok_or(KeyError::Length(position))?;
            keys.push(Key { name: name.to_owned(), aead });
        }
        Ok(Self { keys, random: Some(SystemRandom::new()) })
    }
}

impl Keyring {
    /// Whether there is no key: nothing can be sealed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The name of the key that seals; `None` when there is none.
    #[must_use]
    pub fn current(&self) -> Option<&str> {
        self.keys.first().map(|it| it.name.as_str())
    }

    /// Encrypts a value for its place, by the first key.
    ///
    /// # Errors
    ///
    /// [`VaultError::NoKey`] or [`VaultError::Random`].
    pub fn seal(&self, place: Place<'_>, value: &[u8]) -> Result<Sealed, VaultError> {
        let data_key: [u8; KEY_LEN] = self.draw()?;
        let mut sealed = value.to_vec();
        // A data key encrypts one value in its life, so its nonce cannot repeat.
        data_aead(&data_key)
            .seal_in_place_append_tag(once(), Aad::from(place.associated()), &mut sealed)
            .map_err(|_| VaultError::Random)?;
        let (key_id, data_key) = self.wrap(place, &data_key)?;
        Ok(Sealed { key_id, data_key, value: sealed })
    }

    /// Decrypts a value that was sealed for this place.
    ///
    /// # Errors
    ///
    /// [`VaultError::UnknownKey`], or [`VaultError::Tampered`] where anything of it differs.
    pub fn open(&self, place: Place<'_>, sealed: &Sealed) -> Result<Vec<u8>, VaultError> {
        let data_key = self.unwrap_key(place, &sealed.key_id, &sealed.data_key)?;
        let mut value = sealed.value.clone();
        let length = data_aead(&data_key)
            .open_in_place(once(), Aad::from(place.associated()), &mut value)
            .map_err(|_| VaultError::Tampered(sealed.key_id.clone()))?
            .len();
        value.truncate(length);
        Ok(value)
    }

    /// Encrypts a data key anew by the first key: its name and the bytes. The value stays as it is.
    ///
    /// # Errors
    ///
    /// Those of [`Keyring::open`] and [`Keyring::seal`].
    pub fn rotate(
        &self,
        place: Place<'_>,
        key_id: &str,
        data_key: &[u8],
    ) -> Result<(String, Vec<u8>), VaultError> {
        let plain = self.unwrap_key(place, key_id, data_key)?;
        self.wrap(place, &plain)
    }

    fn wrap(
        &self,
        place: Place<'_>,
        data_key: &[u8; KEY_LEN],
    ) -> Result<(String, Vec<u8>), VaultError> {
        let key = self.keys.first().ok_or(VaultError::NoKey)?;
        // Random nonces of 96 bits are safe for four thousand million data keys of one key.
        let nonce: [u8; NONCE_LEN] = self.draw()?;
        let mut inner = data_key.to_vec();
        key.aead
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(place.associated()),
                &mut inner,
            )
            .map_err(|_| VaultError::Random)?;
        Ok((key.name.clone(), [nonce.as_slice(), &inner].concat()))
    }

    fn unwrap_key(
        &self,
        place: Place<'_>,
        key_id: &str,
        wrapped: &[u8],
    ) -> Result<[u8; KEY_LEN], VaultError> {
        let tampered = || VaultError::Tampered(key_id.to_owned());
        let key = self.keys.iter().find(|it| it.name == key_id);
        let key = key.ok_or_else(|| VaultError::UnknownKey(key_id.to_owned()))?;
        let (nonce, inner) = wrapped.split_at_checked(NONCE_LEN).ok_or_else(tampered)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| tampered())?;
        let mut inner = inner.to_vec();
        let plain = key
            .aead
            .open_in_place(nonce, Aad::from(place.associated()), &mut inner)
            .map_err(|_| tampered())?;
        <[u8; KEY_LEN]>::try_from(&*plain).map_err(|_| tampered())
    }

    fn draw<const N: usize>(&self) -> Result<[u8; N], VaultError> {
        draw(self.random.as_ref().ok_or(VaultError::NoKey)?).ok_or(VaultError::Random)
    }
}

/// A fresh key of this name, as [`Keyring`] reads it.
///
/// # Errors
///
/// [`KeyError::Shape`] when the name is none, [`KeyError::Random`].
pub fn new_key(name: &str) -> Result<String, KeyError> {
    if !is_name(name) {
        return Err(KeyError::Shape(1));
    }
    let bytes: [u8; KEY_LEN] = draw(&SystemRandom::new()).ok_or(KeyError::Random)?;
    Ok(format!("{name}:{}", STANDARD.encode(bytes)))
}

fn draw<const N: usize>(random: &SystemRandom) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    random.fill(&mut bytes).ok()?;
    Some(bytes)
}

fn is_name(name: &str) -> bool {
    let allowed = |it: char| it.is_ascii_alphanumeric() || matches!(it, '-' | '_');
    !name.is_empty() && name.len() <= NAME_MAX && name.chars().all(allowed)
}

/// The cipher under this key; `None` when it is not 32 bytes.
fn aead(key: &[u8]) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, key).ok().map(LessSafeKey::new)
}

fn data_aead(key: &[u8; KEY_LEN]) -> LessSafeKey {
    aead(key).expect("the array has a key's length")
}

/// The nonce of a key that is used once.
fn once() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

#[cfg(test)]
mod tests;
