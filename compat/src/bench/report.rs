//! The committed page: the table with the machine, the date and how to repeat it.

use std::fs;

use ferrovirt_compat::run;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../BENCH.md");

pub(crate) fn write(rounds: usize, table: &str) {
    let date = run("date", &["--utc", "+%Y-%m-%d"]).ok();
    let page = format!(
        "# What it costs\n\n\
         `make bench` printed this on {}, as medians of {rounds} rounds in which the daemons took turns; `UPDATE=1 make bench`\n\
         writes this page. One client on the bare wire measures all of them. The floor is a server that only echoes, QEMU\n\
         started by hand, or a file written without a daemon; the aim is what this project set itself. On a machine that does\n\
         other things the ratios say more than the numbers.\n\n\
         {}\n\n```text\n{table}```\n",
        date.trim(),
        machine(),
    );
    fs::write(PAGE, page).unwrap_or_else(|error| panic!("{PAGE}: {error}"));
}

/// What the numbers depend on.
fn machine() -> String {
    let first = |program: &str, arguments: &[&str]| {
        run(program, arguments).out.lines().next().unwrap_or_default().trim().to_owned()
    };
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let named = named.trim_start_matches([' ', '\t', ':']);
    let processors = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or_default();
    let kib = kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or_default();
    [
        format!(
            "- {processors} processors ({named}), {} GiB of memory, Linux {}",
            kib >> 20,
            first("uname", &["-r"])
        ),
        format!("- {}", first("qemu-system-x86_64", &["--version"])),
        format!("- libvirt's: {}", first("libvirtd", &["--version"])),
        format!("- ours: {}", first("git", &["log", "-1", "--format=%h of %cs"])),
    ]
    .join("\n")
}
