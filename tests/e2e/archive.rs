//! Archives that reach out of their directory are refused by the entry's name.

use berth_testkit::{Archive, Link, SOON, TestStack};

use crate::BERTH;

fn cases() -> Vec<(&'static str, Vec<u8>)> {
    let start = || Archive::default().file("template.toml", "version = 1\n");
    vec![
        ("../outside.sh", start().file("../outside.sh", "#!/bin/sh\n").bytes()),
        ("modules/../../outside.tf", start().file("modules/../../outside.tf", "").bytes()),
        ("/tmp/berth-e2e-absolute", start().file("/tmp/berth-e2e-absolute", "").bytes()),
        ("way-out", start().link(Link::Symbolic, "way-out", "../../..").bytes()),
        ("etc", start().link(Link::Symbolic, "etc", "/etc").bytes()),
        ("hard", start().link(Link::Hard, "hard", "../../secret").bytes()),
    ]
}

/// At the upload or, at the latest, by the daemon that would unpack it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archives_that_reach_out_are_refused_by_the_entrys_name() {
    let stack = TestStack::builder(BERTH).start().await;
    let path = format!("/organizations/{}/templateversions", stack.owner.organization);
    for (name, archive) in cases() {
        let uploaded = stack.app.upload(&stack.owner, archive).await;
        let told = if uploaded.status >= 400 {
            assert!((400..500).contains(&uploaded.status), "{name}: {uploaded:?}");
            uploaded.complaint()
        } else {
            let body = serde_json::json!({
                "file_id": uploaded.ok()["hash"], "storage_method": "file", "provisioner": "exec",
            });
            let version = stack.app.post(&stack.owner, &path, body).await.ok();
            let version = stack.app.imported(&stack.owner, &version, SOON).await;
            assert_eq!(version["job"]["status"], "failed", "{name}: {version:#}");
            version["job"]["error"].as_str().unwrap_or_default().to_owned()
        };
        assert!(told.contains(name), "{told:?} does not name {name:?}");
    }
    for outside in ["work/outside.sh", "outside.sh", "outside.tf", "work/outside.tf"] {
        assert!(!stack.dir().join(outside).exists(), "{outside} was written");
    }
    assert!(!std::path::Path::new("/tmp/berth-e2e-absolute").exists());
    stack.settled().await;
}
