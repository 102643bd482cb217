//! The API, as a test uses it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::servers::chain;
use crate::wait::wait_until;

/// Every test's users have it.
const PASSWORD: &str = "correct horse battery staple 7";

/// Somebody who asks.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    /// The id; empty for nobody.
    pub id: String,
    /// The name.
    pub name: String,
    /// An organization that the user belongs to.
    pub organization: String,
    token: String,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").field("name", &self.name).finish_non_exhaustive()
    }
}

impl User {
    /// Somebody without a token.
    #[must_use]
    pub fn nobody() -> Self {
        Self::with_token("")
    }

    /// Somebody with that token: an agent, a guess.
    #[must_use]
    pub fn with_token(token: &str) -> Self {
        Self {
            id: String::new(),
            name: String::new(),
            organization: String::new(),
            token: token.to_owned(),
        }
    }

    /// The session token.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }
}

/// What the API answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The JSON body; null when there is none.
    pub body: Value,
    /// Method and path, for messages.
    asked: String,
}

impl Answer {
    /// The body; any other status fails the test.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}: {:#}", self.asked, self.body);
        self.body
    }

    /// The body; a status other than 2xx fails the test.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert!(
            (200..300).contains(&self.status),
            "{}: {} {:#}",
            self.asked,
            self.status,
            self.body
        );
        self.body
    }

    /// What the error says: message, detail and each field's complaint.
    #[must_use]
    pub fn complaint(&self) -> String {
        let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let mut parts = vec![text(&self.body, "message"), text(&self.body, "detail")];
        for field in self.body["validations"].as_array().into_iter().flatten() {
            parts.push(format!("{}: {}", text(field, "field"), text(field, "detail")));
        }
        parts.join("\n")
    }
}

/// One request that was answered.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// `GET`, `POST`, …
    pub method: String,
    /// The path below `/api/v2`, query included.
    pub path: String,
    /// The status code.
    pub status: u16,
    /// The JSON body; null when there is none.
    pub body: Value,
}

/// A client of one API replica. Cheap to clone; clones share what they recorded.
#[derive(Debug, Clone)]
pub struct App {
    http: reqwest::Client,
    url: String,
    exchanges: Arc<Mutex<Vec<Exchange>>>,
}

impl App {
    /// A client of the API at `url`.
    #[must_use]
    pub fn new(url: &str) -> Self {
        // Fails only when a provider is there already, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(40))
            // A replica that was killed and started again must not be asked on a dead connection.
            .pool_max_idle_per_host(0)
            .build()
            .expect("HTTP can be set up");
        Self { http, url: url.to_owned(), exchanges: Arc::default() }
    }

    /// Where the API is.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Everything that was asked and answered so far.
    #[must_use]
    pub fn exchanges(&self) -> Vec<Exchange> {
        self.exchanges.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// GET below `/api/v2`.
    pub async fn get(&self, user: &User, path: &str) -> Answer {
        self.send(user, Method::GET, path, None).await
    }

    /// POST of JSON.
    pub async fn post(&self, user: &User, path: &str, body: Value) -> Answer {
        self.send(user, Method::POST, path, Some(body)).await
    }

    /// PUT of JSON.
    pub async fn put(&self, user: &User, path: &str, body: Value) -> Answer {
        self.send(user, Method::PUT, path, Some(body)).await
    }

    /// PATCH of JSON.
    pub async fn patch(&self, user: &User, path: &str, body: Value) -> Answer {
        self.send(user, Method::PATCH, path, Some(body)).await
    }

    /// DELETE.
    pub async fn delete(&self, user: &User, path: &str) -> Answer {
        self.send(user, Method::DELETE, path, None).await
    }

    /// Any request; no answer at all fails the test.
    pub async fn send(
        &self,
        user: &User,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Answer {
        let asked = format!("{method} {path}");
        match self.try_send(user, method, path, body).await {
            Ok(answer) => answer,
            Err(error) => panic!("no answer to {asked}: {}", chain(&error)),
        }
    }

    /// Any request; the API may be away.
    pub async fn try_send(
        &self,
        user: &User,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Answer, reqwest::Error> {
        let mut request = self.request(user, method.clone(), path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        self.finish(request, &method, path).await
    }

    /// Uploads an archive.
    pub async fn upload(&self, user: &User, archive: Vec<u8>) -> Answer {
        let request = self
            .request(user, Method::POST, "/files")
            .header("Content-Type", "application/x-tar")
            .body(archive);
        let sent = self.finish(request, &Method::POST, "/files").await;
        sent.unwrap_or_else(|error| panic!("no answer to the upload: {}", chain(&error)))
    }

    fn request(&self, user: &User, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}/api/v2{path}", self.url));
        if user.token.is_empty() {
            request
        } else {
            request.header("Coder-Session-Token", &user.token)
        }
    }

    async fn finish(
        &self,
        request: reqwest::RequestBuilder,
        method: &Method,
        path: &str,
    ) -> Result<Answer, reqwest::Error> {
        let response = request.send().await?;
        let status = response.status().as_u16();
        let bytes = response.bytes().await?;
        let body = if bytes.is_empty() {
            Value::Null
        } else {
            let text = || Value::from(String::from_utf8_lossy(&bytes).into_owned());
            serde_json::from_slice(&bytes).unwrap_or_else(|_| text())
        };
        let exchange = Exchange {
            method: method.to_string(),
            path: path.to_owned(),
            status,
            body: body.clone(),
        };
        self.exchanges.lock().unwrap_or_else(PoisonError::into_inner).push(exchange);
        Ok(Answer { status, body, asked: format!("{method} {path}") })
    }

    /// Makes the first user, an owner, and logs in.
    pub async fn first_user(&self) -> User {
        let body = json!({
            "email": "owner@example.com", "username": "owner", "name": "The Owner",
            "password": PASSWORD, "trial": false,
        });
        let made = self.post(&User::nobody(), "/users/first", body).await.expect(201);
        let organization = made["organization_id"].as_str().expect("an organization").to_owned();
        self.login("owner", organization).await
    }

    /// Makes a member of `admin`'s organization and logs in.
    pub async fn user(&self, admin: &User, name: &str) -> User {
        let body = json!({
            "email": format!("{name}@example.com"), "username": name, "name": name,
            "password": PASSWORD, "login_type": "password",
            "organization_ids": [admin.organization],
        });
        self.post(admin, "/users", body).await.expect(201);
        self.login(name, admin.organization.clone()).await
    }

    async fn login(&self, name: &str, organization: String) -> User {
        let body = json!({ "email": format!("{name}@example.com"), "password": PASSWORD });
        let answer = self.post(&User::nobody(), "/users/login", body).await.expect(201);
        let token = answer["session_token"].as_str().expect("a session token").to_owned();
        let user = User { organization, name: name.to_owned(), ..User::with_token(&token) };
        let me = self.get(&user, "/users/me").await.expect(200);
        User { id: me["id"].as_str().expect("an id").to_owned(), ..user }
    }

    /// Uploads an archive and queues its import. Answers with the version.
    pub async fn given_version(
        &self,
        user: &User,
        archive: Vec<u8>,
        provisioner: &str,
        template: Option<&Value>,
    ) -> Value {
        let file = self.upload(user, archive).await.ok();
        let mut body = json!({
            "file_id": file["hash"], "storage_method": "file", "provisioner": provisioner,
        });
        if let Some(template) = template {
            body["template_id"] = template["id"].clone();
        }
        let path = format!("/organizations/{}/templateversions", user.organization);
        self.post(user, &path, body).await.expect(201)
    }

    /// Waits until the import of a version has ended. Answers with the version.
    pub async fn imported(&self, user: &User, version: &Value, within: Duration) -> Value {
        let path = format!("/templateversions/{}", id(version));
        wait_until("the import ends", within, async || {
            let version = self.get(user, &path).await.expect(200);
            ended(&version["job"]).then_some(version)
        })
        .await
    }

    /// Pushes an exec template under a new name and waits for its import. Answers with the template.
    pub async fn given_template(&self, user: &User, name: &str, archive: Vec<u8>) -> Value {
        let version = self.given_version(user, archive, "exec", None).await;
        let version = self.imported(user, &version, crate::SOON).await;
        assert_eq!(version["job"]["status"], "succeeded", "{version:#}");
        let body = json!({ "name": name, "template_version_id": version["id"] });
        let path = format!("/organizations/{}/templates", user.organization);
        self.post(user, &path, body).await.ok()
    }

    /// The preset of that name in the template's active version.
    pub async fn preset(&self, user: &User, template: &Value, name: &str) -> String {
        let version = template["active_version_id"].as_str().expect("an active version");
        let path = format!("/templateversions/{version}/presets");
        let presets = self.get(user, &path).await.expect(200);
        let field = |preset: &Value, lower: &str, upper: &str| {
            let value = preset.get(lower).or_else(|| preset.get(upper));
            value.and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let all = presets.as_array().expect("a list of presets");
        let found = all.iter().find(|it| field(it, "name", "Name") == name);
        found.map_or_else(|| panic!("no preset {name}: {presets:#}"), |it| field(it, "id", "ID"))
    }

    /// Asks for a workspace of a template, with a preset when one is given.
    pub async fn create_workspace(
        &self,
        user: &User,
        template: &Value,
        preset: Option<&str>,
        name: &str,
    ) -> Answer {
        let mut body = json!({ "name": name, "template_id": template["id"] });
        if let Some(preset) = preset {
            body["template_version_preset_id"] = preset.into();
        }
        let path = format!("/organizations/{}/members/{}/workspaces", user.organization, user.id);
        self.post(user, &path, body).await
    }

    /// Waits until the workspace's latest build has ended. Answers with the workspace.
    pub async fn built(&self, user: &User, workspace: &Value) -> Value {
        let path = format!("/workspaces/{}?include_deleted=true", id(workspace));
        wait_until("the latest build ends", crate::SOON, async || {
            let workspace = self.get(user, &path).await.expect(200);
            ended(&workspace["latest_build"]["job"]).then_some(workspace)
        })
        .await
    }
}

fn id(value: &Value) -> &str {
    value["id"].as_str().expect("an id")
}

fn ended(job: &Value) -> bool {
    matches!(job["status"].as_str(), Some("succeeded" | "failed" | "canceled"))
}
