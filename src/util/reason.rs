//! What the system says about an error, in the words that libvirt's sentences end with.

use std::fmt;
use std::io;

/// An I/O error without Rust's "(os error 2)" behind the system's text.
#[derive(Debug)]
pub struct Reason<'a>(pub &'a io::Error);

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        f.write_str(text.split(" (os error").next().unwrap_or(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_number_is_left_out() {
        assert_eq!(Reason(&io::Error::from_raw_os_error(2)).to_string(), "No such file or directory");
        assert_eq!(Reason(&io::Error::other("it broke")).to_string(), "it broke");
    }
}
