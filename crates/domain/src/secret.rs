//! What a user's secret may be (50-access). Values are never part of an error.

/// Most secrets of one user.
pub const MOST: usize = 50;
/// Most bytes of one value.
pub const VALUE_MAX: usize = 24 * 1024;
/// Most bytes of all values of one user.
pub const TOTAL_MAX: i64 = 200 * 1024;
/// Most characters of a secret's name.
const NAME_MAX: usize = 64;
/// Most characters of a description.
const DESCRIPTION_MAX: usize = 256;
/// Most characters of a variable's name.
const ENV_MAX: usize = 128;
/// Most bytes of a path.
const PATH_MAX: usize = 1024;

/// Variables that a secret must not stand for: a program would take them for its own.
const RESERVED: [&str; 22] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "PWD",
    "OLDPWD",
    "LANG",
    "TZ",
    "TERM",
    "TMPDIR",
    "IFS",
    "ENV",
    "BASH_ENV",
    "PS4",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "SSH_AUTH_SOCK",
];
/// Beginnings of such variables.
const RESERVED_PREFIXES: [&str; 7] = ["CODER_", "BERTH_", "TF_", "TOFU_", "LD_", "DYLD_", "LC_"];

/// Why a secret is refused: the field, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct SecretError {
    /// Which field.
    pub field: &'static str,
    /// Why, and what is allowed.
    pub detail: String,
}

fn refuse(field: &'static str, detail: String) -> Result<(), SecretError> {
    Err(SecretError { field, detail })
}

/// Checks a secret's name.
pub fn check_name(name: &str) -> Result<(), SecretError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if !first || name.len() > NAME_MAX || !name.bytes().all(fits) {
        let rule = "letters, digits, `.`, `_` and `-`, beginning with a letter or digit";
        return refuse("name", format!("{name:?} is not 1 to {NAME_MAX} of {rule}"));
    }
    Ok(())
}

/// Checks a description.
pub fn check_description(text: &str) -> Result<(), SecretError> {
    let count = text.chars().count();
    if count > DESCRIPTION_MAX || text.contains('\0') {
        let detail = format!("has {count} characters; at most {DESCRIPTION_MAX}, none of them NUL");
        return refuse("description", detail);
    }
    Ok(())
}

/// Checks by what templates ask for it: a variable's name, a path, or both. Empty is not given.
pub fn check_targets(env_name: &str, file_path: &str) -> Result<(), SecretError> {
    if env_name.is_empty() && file_path.is_empty() {
        return refuse("env_name", "give env_name, file_path or both".to_owned());
    }
    check_env_name(env_name)?;
    check_file_path(file_path)
}

fn check_env_name(name: &str) -> Result<(), SecretError> {
    if name.is_empty() {
        return Ok(());
    }
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.len() > ENV_MAX || !name.bytes().all(fits) || name.as_bytes()[0].is_ascii_digit() {
        let rule = "letters, digits and `_`, not beginning with a digit";
        return refuse("env_name", format!("{name:?} is not 1 to {ENV_MAX} of {rule}"));
    }
    let upper = name.to_ascii_uppercase();
    let prefix = RESERVED_PREFIXES.iter().find(|it| upper.starts_with(**it));
    if RESERVED.contains(&&*upper) || prefix.is_some() {
        let text = format!("{name:?} is reserved; choose a name that no program takes for its own");
        return refuse("env_name", text);
    }
    Ok(())
}

fn check_file_path(path: &str) -> Result<(), SecretError> {
    if path.is_empty() {
        return Ok(());
    }
    let rooted = path.starts_with('/') || path.starts_with("~/");
    let parts = path.split('/').skip(1);
    let clean = parts.clone().all(|part| !part.is_empty() && part != "." && part != "..");
    if path.len() > PATH_MAX || !rooted || !clean || path.chars().any(char::is_control) {
        let rule = "begin with `/` or `~/`, and have no `.`, `..`, empty part or control character";
        return refuse("file_path", format!("{path:?} must have up to {PATH_MAX} bytes, {rule}"));
    }
    Ok(())
}

/// Checks a value, without telling it.
pub fn check_value(value: &str) -> Result<(), SecretError> {
    if value.is_empty() || value.len() > VALUE_MAX || value.contains('\0') {
        let length = value.len();
        let detail = format!("has {length} bytes; use 1 to {VALUE_MAX}, none of them NUL");
        return refuse("value", detail);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_programs_take_for_their_own_are_refused_whatever_the_case() {
        for name in ["PATH", "Path", "CODER_AGENT_TOKEN", "ld_preload", "TF_VAR_x", "BERTH_X"] {
            let error = check_targets(name, "").unwrap_err();
            assert!(error.field == "env_name" && error.detail.contains("reserved"), "{error:?}");
        }
        for name in ["1A", "A-B", "A B", "A=B", "Ä"] {
            assert_eq!(check_targets(name, "").unwrap_err().field, "env_name", "{name}");
        }
        for name in ["TOKEN", "_x", "npm_config_token", "PATHS"] {
            check_targets(name, "").unwrap();
        }
    }

    #[test]
    fn a_path_is_absolute_or_below_home_and_goes_nowhere_else() {
        for path in ["~/.ssh/id", "/etc/key"] {
            check_targets("", path).unwrap();
        }
        for path in ["key", "~", "~/", "/", "/a/../b", "~/./a", "/a//b", "/a\nb", "~x/y"] {
            assert_eq!(check_targets("", path).unwrap_err().field, "file_path", "{path:?}");
        }
        assert_eq!(check_targets("", "").unwrap_err().field, "env_name");
    }

    #[test]
    fn no_error_tells_the_value() {
        let error = check_value(&"hunter2".repeat(4000)).unwrap_err();
        assert!(!error.to_string().contains("hunter"), "{error}");
        assert!(check_value("").is_err() && check_value("a\0b").is_err());
        check_value(&"x".repeat(VALUE_MAX)).unwrap();
    }

    #[test]
    fn a_name_fits_into_a_path_of_the_api() {
        for name in ["", "-a", "a/b", "a b", &"a".repeat(65)] {
            assert_eq!(check_name(name).unwrap_err().field, "name", "{name}");
        }
        check_name("npm.token_1").unwrap();
    }
}
