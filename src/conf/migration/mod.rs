//! What the two hosts of a migration tell each other.

mod abi;
mod cookie;
mod image;
mod statistics;

pub use cookie::{
    Bitmap, BitmapDisk, Capability, Certificate, Cookie, CookieGraphics, Feature, FeatureName, Features,
    LockState, MAX_BYTES, Nbd, NbdDisk, Peer, Persistent, PortData,
};
pub use image::{NewTarget, NewVolume};
pub use statistics::Statistics;
