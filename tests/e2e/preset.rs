//! Presets that break the rules fail the import, and the message says what to change.

use berth_domain::preset::{PresetError, Violation};
use berth_testkit::{SOON, TestStack};

use crate::{BERTH, template};

fn error(preset: &str, violation: Violation) -> String {
    PresetError { preset: preset.to_owned(), violation }.to_string()
}

/// Presets, TOML, and the message that each gets.
fn cases() -> Vec<(&'static str, String)> {
    vec![
        (
            "[[presets]]\nname = \"small\"\nparameters = { size = \"small\" }\n\
             prebuilds = { instances = 1, ttl_seconds = 60 }",
            error("small", Violation::Ttl { ttl: 60 }),
        ),
        (
            "[[presets]]\nname = \"small\"\nparameters = { size = \"small\" }\n\
             prebuilds = { instances = -1 }",
            error("small", Violation::NegativeInstances { instances: -1 }),
        ),
        (
            "[[presets]]\nname = \"one\"\nparameters = { size = \"small\" }\n\
             [[presets]]\nname = \"two\"\nparameters = { size = \"small\" }",
            error("two", Violation::SameParameters { other: "one".to_owned() }),
        ),
        (
            "[[presets]]\nname = \"far\"\nparameters = { size = \"small\" }\n\
             prebuilds = { instances = 1, timezone = \"Mars/Base\", \
             schedules = [{ cron = \"* 9-18 * * 1-5\", instances = 2 }] }",
            error("far", Violation::Timezone { timezone: "Mars/Base".to_owned() }),
        ),
        (
            "[[presets]]\nname = \"huge\"\nparameters = { size = \"huge\" }",
            "preset \"huge\" sets parameter \"size\" to \"huge\"".to_owned(),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_preset_fails_the_import_with_its_name_and_value() {
    let stack = TestStack::builder(BERTH).start().await;
    for (presets, message) in cases() {
        let archive = template::with_presets(presets);
        let version = stack.app.given_version(&stack.owner, archive, "exec", None).await;
        let version = stack.app.imported(&stack.owner, &version, SOON).await;
        assert_eq!(version["job"]["status"], "failed", "{presets}: {version:#}");
        let told = version["job"]["error"].as_str().unwrap_or_default();
        assert!(told.contains(&message), "{told:?} does not say {message:?}");
    }
    let pools = stack.database().count("select count(*) from prebuild_pools").await;
    assert_eq!(pools, 0, "a version that failed has no pool");
    stack.settled().await;
}
