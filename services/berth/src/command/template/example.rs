//! The example templates of this repository, so that the binary works outside it.

use std::path::Path;

use anyhow::Context as _;
use clap::ValueEnum;

/// An example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Example {
    /// Terraform alone: a workspace is a folder on the provisioner's machine
    Local,
    /// The same without Terraform: two shell scripts
    LocalExec,
    /// A container with a volume, for the public docker provider
    Docker,
    /// A pod with a volume, for the public kubernetes provider
    Kubernetes,
}

/// A file of an example.
struct File {
    path: &'static str,
    text: &'static str,
}

macro_rules! file {
    ($example:literal, $path:literal) => {
        File {
            path: $path,
            text: include_str!(concat!("../../../../../templates/", $example, "/", $path)),
        }
    };
}

const LOCAL: &[File] = &[file!("local", "main.tf"), file!("local", "README.md")];
const LOCAL_EXEC: &[File] = &[
    file!("local-exec", "template.toml"),
    file!("local-exec", "plan"),
    file!("local-exec", "apply"),
    file!("local-exec", "lib.sh"),
    file!("local-exec", "scripts/startup.sh"),
    file!("local-exec", "scripts/tidy.sh"),
    file!("local-exec", "README.md"),
];
const DOCKER: &[File] = &[file!("docker", "main.tf"), file!("docker", "README.md")];
const KUBERNETES: &[File] = &[file!("kubernetes", "main.tf"), file!("kubernetes", "README.md")];

impl Example {
    /// Its name, which is that of its folder in `templates/`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::LocalExec => "local-exec",
            Self::Docker => "docker",
            Self::Kubernetes => "kubernetes",
        }
    }

    fn files(self) -> &'static [File] {
        match self {
            Self::Local => LOCAL,
            Self::LocalExec => LOCAL_EXEC,
            Self::Docker => DOCKER,
            Self::Kubernetes => KUBERNETES,
        }
    }

    /// Writes its files into `dir`, which is made if it is not there. Files of the same names are
    /// written over.
    pub(crate) fn write(self, dir: &Path) -> anyhow::Result<()> {
        for file in self.files() {
            let path = dir.join(file.path);
            let parent = path.parent().unwrap_or(dir);
            std::fs::create_dir_all(parent)
                .with_context(|| format!("cannot make {}", parent.display()))?;
            std::fs::write(&path, file.text)
                .with_context(|| format!("cannot write {}", path.display()))?;
            if file.text.starts_with("#!") {
                make_program(&path)?;
            }
        }
        Ok(())
    }
}

fn make_program(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", path.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    fn templates() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../templates")
    }

    /// Path, content and whether it is a program, of every file below a folder.
    fn tree(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, bool)> {
        use std::os::unix::fs::PermissionsExt as _;
        let (mut found, mut dirs) = (BTreeMap::new(), vec![dir.to_owned()]);
        while let Some(at) = dirs.pop() {
            for entry in at.read_dir().unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                    continue;
                }
                let is_program = path.metadata().unwrap().permissions().mode() & 0o100 != 0;
                let name = path.strip_prefix(dir).unwrap().to_owned();
                found.insert(name, (std::fs::read(&path).unwrap(), is_program));
            }
        }
        found
    }

    #[test]
    fn every_template_of_the_repository_is_written_as_it_is_there() {
        for entry in templates().read_dir().unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let example = Example::from_str(&name, false).unwrap();
            assert_eq!(example.name(), name);
            let dir = tempfile::tempdir().unwrap();
            example.write(&dir.path().join("new")).unwrap();
            let programs = |tree: BTreeMap<PathBuf, (Vec<u8>, bool)>| {
                let is_script = |path: &Path| path.extension().is_some_and(|it| it == "sh");
                tree.into_iter()
                    .map(|(path, (text, program))| {
                        // Scripts are read by a shell; whether they are programs makes no difference.
                        let program = program && !is_script(&path);
                        (path, (text, program))
                    })
                    .collect::<BTreeMap<_, _>>()
            };
            let written = programs(tree(&dir.path().join("new")));
            assert_eq!(written, programs(tree(&templates().join(&name))), "{name}");
        }
    }

    #[test]
    fn every_example_teaches_two_pools_and_what_a_claim_may_change() {
        for example in Example::value_variants() {
            let text: String = example.files().iter().map(|it| it.text).collect();
            let count = |what: &str| text.matches(what).count();
            let (presets, pools) = match example {
                Example::LocalExec => ("[[presets]]", "prebuilds = {"),
                _ => ("data \"coder_workspace_preset\"", "prebuilds {"),
            };
            assert_eq!((count(presets), count(pools)), (2, 2), "{example:?}");
            assert!(count("claim") > 3, "{example:?}");
        }
    }

    #[test]
    fn terraform_finds_the_templates_well_formed() {
        let checked = Command::new("terraform")
            .args(["fmt", "-check", "-recursive", "-no-color"])
            .env_remove("TF_CLI_CONFIG_FILE")
            .arg(templates())
            .output();
        match checked {
            Ok(it) => assert!(it.status.success(), "{}", String::from_utf8_lossy(&it.stdout)),
            Err(_) => eprintln!("skipped: terraform is not on PATH"),
        }
    }
}
