//! The error that a failed call answers with, as it travels.

use std::fmt;

use crate::net::Error;

impl Error {
    /// Level 2 (an error, not a warning) and nothing beside the sentence.
    pub fn new(code: i32, origin: i32, message: impl Into<String>) -> Self {
        Self { code, domain: origin, message: Some(message.into()), level: 2, ..Self::default() }
    }

    /// The sentence; peers may leave it out.
    pub fn text(&self) -> &str {
        self.message.as_deref().unwrap_or("unknown error")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {}, domain {})", self.text(), self.code, self.domain)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_sentence_and_numbers() {
        let error = Error::new(42, 10, "Domain not found: x");
        assert_eq!(error.to_string(), "Domain not found: x (code 42, domain 10)");
        assert_eq!(Error::default().to_string(), "unknown error (code 0, domain 0)");
    }
}
