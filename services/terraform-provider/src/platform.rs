//! This machine in Go's words, which Terraform and templates use.

/// The operating system, such as `linux` or `darwin`.
pub(crate) fn os() -> &'static str {
    go_os(std::env::consts::OS)
}

/// The architecture, such as `amd64` or `arm64`.
pub(crate) fn arch() -> &'static str {
    go_arch(std::env::consts::ARCH)
}

fn go_os(rust: &'static str) -> &'static str {
    match rust {
        "macos" => "darwin",
        other => other,
    }
}

fn go_arch(rust: &'static str) -> &'static str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_have_gos_names() {
        assert_eq!((go_os("linux"), go_os("macos")), ("linux", "darwin"));
        assert_eq!(
            (go_arch("x86_64"), go_arch("aarch64"), go_arch("x86")),
            ("amd64", "arm64", "386")
        );
    }
}
