//! Guests: what exists, what runs, and what clients may do with it.

pub mod event;
