//! Storage pools and volumes as XML.
//!
//! | file | |
//! |---|---|
//! | `types` | the types of pools, what each takes, and the capabilities text made of it |
//! | `pool` | `<pool>`: where volumes are |
//! | `volume` | `<volume>`: one image, and the image below it |
//! | `permissions` | who may read a file |
//! | `encryption` | how an image is encrypted, and with which secret |
//! | `lookup` | texts inside texts |

mod encryption;
mod lookup;
mod permissions;
mod pool;
mod types;
mod volume;

pub use encryption::{Cipher, Encryption, EncryptionFormat, EncryptionSecret, InitVector, SecretLookup};
pub use lookup::clean_path;
pub use permissions::Permissions;
pub use pool::{Device, Extent, Host, Pool, RefreshAllocation, Sizes, Source};
pub use types::{Needs, PoolType, capabilities};
pub use volume::{Capacity, Moment, Probed, Role, Target, Timestamps, Volume, VolumeFeature, VolumeType};
