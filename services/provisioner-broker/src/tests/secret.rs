//! Secrets of a workspace's owner, on their way to a plan.

use super::*;

impl Stand {
    async fn given_secret(&self, env_name: &str, value: &str, sealed: bool) {
        let seal = if sealed { "'gone', '\\x00'" } else { "null, null" };
        let sql = format!(
            "insert into user_secrets (id, user_id, name, env_name, file_path, value, key_id,
                     data_key, size, created_at, updated_at)
                 values (gen_random_uuid(), '{USER}', '{env_name}', '{env_name}', '~/{env_name}',
                         '{value}', {seal}, 1, now(), now())"
        );
        self.database.rows(&sql).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owners_secrets_come_with_a_start_and_with_nothing_else() {
    let stand = Stand::new().await;
    stand.given_secret("TOKEN", "hush", false).await;
    let claim = stand.acquire().await;
    let [secret] = &build_of(&claim).user_secrets[..] else { panic!("{claim:?}") };
    let found = (&*secret.env_name, &*secret.file_path, &*secret.value);
    assert_eq!(found, ("TOKEN", "~/TOKEN", "hush"));
    stand.complete(&claim).await;
    for transition in ["stop", "delete"] {
        stand.queue(transition).await;
        let job = stand.acquire().await;
        assert!(build_of(&job).user_secrets.is_empty(), "{transition}");
        stand.complete(&job).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_cannot_be_read_fails_the_job_and_is_not_told() {
    let stand = Stand::new().await;
    stand.complete(&stand.acquire().await).await;
    stand.given_secret("TOKEN", "hush", true).await;
    stand.queue("start").await;
    let request = v1::AcquireJobRequest {
        daemon_id: DAEMON.to_string(),
        wait_seconds: 5,
        ..Default::default()
    };
    let job = acquire::acquire(&stand.broker, OrganizationId(ORG), &request).await.unwrap();
    assert!(job.is_none(), "a build began without the secret");
    assert_eq!(stand.builds().await.last().unwrap(), "3 none failed infrastructure");
    let notes = stand.notes().await;
    assert!(notes.contains("a secret of the workspace's owner cannot be read"), "{notes}");
    assert!(!notes.contains("hush"), "{notes}");
}
