//! XML models of libvirt's objects: pure functions of their input, no IO, no clock, no tokio.
