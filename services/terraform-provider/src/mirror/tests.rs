use std::process::Command;

use super::*;

fn wrapper(dir: &Path, registry: &str) -> std::path::PathBuf {
    let platform = format!("{}_{}", platform::os(), platform::arch());
    let name = format!("terraform-provider-coder_v{VERSION}");
    dir.join(registry).join("coder/coder").join(VERSION).join(platform).join(name)
}

/// Runs it through the shell: while another test starts a program, that program's fork may hold
/// the file open for writing, and then the kernel refuses to run it.
fn run(wrapper: &Path) -> std::process::Output {
    Command::new("sh").arg(wrapper).output().unwrap()
}

#[test]
fn both_registries_lead_to_the_binary() {
    let dir = tempfile::tempdir().unwrap();
    mirror(dir.path(), Path::new("/bin/echo")).unwrap();
    for registry in REGISTRIES {
        let output = run(&wrapper(dir.path(), registry));
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "terraform-provider\n");
    }
}

#[test]
fn writing_it_again_leads_to_the_new_binary_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    mirror(dir.path(), Path::new("/bin/false")).unwrap();
    mirror(dir.path(), Path::new("/bin/true")).unwrap();
    let wrapper = wrapper(dir.path(), REGISTRIES[0]);
    assert!(run(&wrapper).status.success());
    assert_eq!(fs::metadata(&wrapper).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::read_dir(wrapper.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn a_path_with_any_characters_is_one_word() {
    let dir = tempfile::tempdir().unwrap();
    let odd = dir.path().join("it's a \"$HOME\" & co");
    std::os::unix::fs::symlink("/bin/echo", &odd).unwrap();
    mirror(dir.path(), &odd).unwrap();
    let output = run(&wrapper(dir.path(), REGISTRIES[1]));
    assert!(output.status.success());
}
