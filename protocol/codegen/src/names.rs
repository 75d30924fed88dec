//! From the names of a text to those of Rust and of libvirt's API.

/// `domain_get_info` to `DomainGetInfo`.
pub(crate) fn camel(name: &str) -> String {
    name.split('_').map(capitalized).collect()
}

/// A field's name, escaped where it is a keyword.
pub(crate) fn field(name: &str) -> String {
    match name {
        "type" | "ref" | "move" | "match" | "final" | "virtual" => format!("r#{name}"),
        _ => name.to_owned(),
    }
}

/// The function behind a procedure: `virDomainGetXMLDesc` for `domain_get_xml_desc`.
pub(crate) fn api(program: &str, procedure: &str) -> String {
    let words: String = procedure.split('_').map(spelled).collect();
    match program {
        "admin" => format!("virAdm{words}"),
        "qemu" => format!("vir{}", words.replacen("Domain", "DomainQemu", 1)),
        _ => format!("vir{words}"),
    }
}

/// How libvirt's functions spell a word.
fn spelled(word: &str) -> String {
    const SPELLED: &[&str] = &[
        "CPU",
        "DHCP",
        "FD",
        "FSFreeze",
        "FSInfo",
        "FSThaw",
        "FSTrim",
        "ID",
        "IOThread",
        "MAC",
        "NMI",
        "NWFilter",
        "NWFilters",
        "OS",
        "PM",
        "SCSI",
        "SEV",
        "SSH",
        "ThreadPool",
        "URI",
        "UUID",
        "WWN",
        "XML",
    ];
    SPELLED
        .iter()
        .find(|spelled| spelled.eq_ignore_ascii_case(word))
        .map_or_else(|| capitalized(word), |spelled| (*spelled).to_owned())
}

fn capitalized(word: &str) -> String {
    let mut chars = word.chars();
    match chars.next() {
        Some(first) => first.to_ascii_uppercase().to_string() + &chars.as_str().to_ascii_lowercase(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_names_follow_from_ours() {
        for (program, procedure, function) in [
            ("remote", "domain_get_xml_desc", "virDomainGetXMLDesc"),
            ("remote", "nwfilter_lookup_by_uuid", "virNWFilterLookupByUUID"),
            ("remote", "domain_set_block_io_tune", "virDomainSetBlockIoTune"),
            ("remote", "domain_get_vcpus_flags", "virDomainGetVcpusFlags"),
            ("qemu", "domain_monitor_command", "virDomainQemuMonitorCommand"),
            ("admin", "server_get_threadpool_parameters", "virAdmServerGetThreadPoolParameters"),
        ] {
            assert_eq!(api(program, procedure), function);
        }
    }

    #[test]
    fn keywords_are_escaped() {
        assert_eq!((field("type").as_str(), field("name").as_str()), ("r#type", "name"));
    }
}
