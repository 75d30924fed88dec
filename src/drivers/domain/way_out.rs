//! What the reader of a failed start can do about it: the class of the failure, and the way out.

/// A part of the sentence, QEMU's words or libvirt's, and what helps.
const WAYS: &[(&str, &str)] = &[
    (
        "Address already in use",
        "port taken: another process listens there ('ss -ltnp' names it); \
         choose another port, or autoport='yes' for graphics",
    ),
    (
        "Cannot allocate memory",
        "out of memory: the host does not have what <memory> asks for; lower it, \
         or reserve more pages (vm.nr_hugepages) if the guest is backed by huge ones",
    ),
    (
        "unsupported machine type",
        "machine unsupported: 'virsh capabilities' lists those of this QEMU; change machine= under <os>",
    ),
    ("unable to find CPU model", CPU),
    ("oesn't support requested feature", CPU),
    (
        "could not load PC BIOS",
        "firmware missing: the file of <loader> is not there; install it or name another one",
    ),
    (
        "firmware that is compatible with the current configuration",
        "firmware missing: 'virsh domcapabilities' lists what is installed; install more (package ovmf), \
         or change firmware= under <os>",
    ),
    (
        "Could not access KVM kernel module",
        "KVM missing: load its module and let QEMU's user open /dev/kvm, or use <domain type='qemu'>",
    ),
    (
        "Failed to get \"write\" lock",
        "image in use: stop whoever has it open, or say <shareable/> if both are to write to it",
    ),
    ("No space left on device", "disk full: make room there and start again"),
];

const CPU: &str = "cpu unsupported: 'virsh domcapabilities' lists the models that run here; \
                   change <cpu>, or let it follow the host by mode='host-model'";

pub(super) fn of(sentence: &str) -> Option<&'static str> {
    WAYS.iter().find(|(part, _)| sentence.contains(part)).map(|(_, way)| *way)
}

#[cfg(test)]
mod tests {
    use super::of;

    #[test]
    fn known_failures_have_a_way_out() {
        for (words, class) in [
            ("-vnc 127.0.0.1:88: Failed to find an available port: Address already in use", "port taken"),
            ("cannot set up guest memory 'pc.ram': Cannot allocate memory", "out of memory"),
            ("unable to find CPU model 'foo'", "cpu unsupported"),
            ("Host doesn't support requested features", "cpu unsupported"),
        ] {
            assert_eq!(of(words).unwrap().split(':').next(), Some(class), "{words}");
        }
        assert_eq!(of("Failed to unlink socket /tmp/vm: Is a directory"), None);
    }
}
