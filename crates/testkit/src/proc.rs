//! What runs on this machine.

use std::path::Path;

/// The processes that name `path` in their arguments or environment or have it open as their
/// working directory: number and arguments of each. Zombies are ended and do not count.
#[must_use]
pub fn processes_of(path: &Path) -> Vec<(u32, String)> {
    let needle = path.as_os_str().as_encoded_bytes();
    let ours = std::process::id();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers
        .filter(|pid: &u32| *pid != ours)
        .filter(|pid| {
            let file =
                |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let inside = std::fs::read_link(format!("/proc/{pid}/cwd"))
                .is_ok_and(|working| working.starts_with(path));
            let stat = String::from_utf8_lossy(&file("stat")).into_owned();
            let ended = stat.is_empty() || stat.contains(") Z ");
            let named = |bytes: Vec<u8>| bytes.windows(needle.len()).any(|part| part == needle);
            !ended && (inside || named(file("cmdline")) || named(file("environ")))
        })
        .map(|pid| {
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            (pid, String::from_utf8_lossy(&arguments).replace('\0', " ").trim().to_owned())
        })
        .collect()
}
