//! Terminals of agents: people's WebSockets, and the ones that agents keep open to be reached by.
//!
//! The two of one terminal may be at different replicas: frames between them travel over NATS. What
//! is typed and shown is stored nowhere and logged nowhere.

mod attachment;
mod relay;
mod wire;

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use berth_db::DbError;
use berth_db::agent::terminal::{self, Place};
use berth_domain::authz::{Action, Resource, ResourceKind};
use berth_domain::id::{AgentId, UserId};
use berth_domain::terminal::{MAX_COMMAND, MAX_SIDE, Open, Size};
use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::app::App;
use crate::audit::{self, Change};
use crate::auth::Caller;
use crate::edge::Origin;
use crate::error::{ApiError, Validation};
use crate::extract::{Path, Query};
use crate::live::answer::Upgrade;
use crate::stream_limit::Holder;

/// Says at which byte of the shell's output the answer begins.
const OFFSET: HeaderName = HeaderName::from_static("berth-terminal-offset");
/// Most bytes of one message from a person.
const MOST_MESSAGE: usize = 1 << 20;

/// Routes of terminals.
pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/workspaceagents/{agent}/pty", get(open))
        .route("/workspaceagents/me/terminals", get(relay::serve))
}

/// What a person may say about the terminal. Texts, so that who may have none learns nothing.
#[derive(Debug, Default, Deserialize)]
struct Wanted {
    reconnect: Option<String>,
    width: Option<String>,
    height: Option<String>,
    command: Option<String>,
    /// Ours: `false` connects pipes instead of a terminal.
    terminal: Option<String>,
    /// Ours: bytes of output that the client has; joins a shell and never starts one.
    after: Option<String>,
}

impl Wanted {
    fn check(self, app: &App, caller: &Caller) -> Result<Open, ApiError> {
        let mut refused = Vec::new();
        let mut field = |name: &str, detail: String| {
            refused.push(Validation { field: name.to_owned(), detail });
        };
        let mut side = |name: &str, text: Option<String>, otherwise: u16| {
            let Some(text) = text.filter(|it| !it.is_empty()) else { return otherwise };
            match text.parse() {
                Ok(side) if (1..=MAX_SIDE).contains(&side) => side,
                _ => {
                    field(name, format!("is {}; use 1 to {MAX_SIDE}", shown(&text)));
                    otherwise
                }
            }
        };
        let width = side("width", self.width, 80);
        let height = side("height", self.height, 24);
        let given = self.reconnect.filter(|it| !it.is_empty());
        let reconnect = given.as_deref().map(|text| Uuid::try_parse(text).map_err(|_| text));
        if let Some(Err(text)) = reconnect {
            field("reconnect", format!("is {}; use a UUID", shown(text)));
        }
        let command = self.command.unwrap_or_default();
        if command.len() > MAX_COMMAND {
            let detail = format!("has {} bytes; use at most {MAX_COMMAND}", command.len());
            field("command", detail);
        } else if command.contains('\0') {
            field("command", "contains a NUL character".to_owned());
        }
        let after = self.after.as_deref().filter(|it| !it.is_empty()).map(str::parse::<u64>);
        if let Some(Err(_)) = after {
            field("after", "is not a number of bytes".to_owned());
        }
        if !refused.is_empty() {
            return Err(ApiError::fields(refused));
        }
        // A shell that nobody can name is over when its only attachment is.
        let keep = match reconnect {
            Some(_) => Duration::from(app.config.terminals.keep).as_secs(),
            None => 0,
        };
        Ok(Open {
            user_id: caller.id(),
            reconnect: reconnect.and_then(Result::ok).unwrap_or_else(|| app.backbone.ids.next()),
            size: Size { width, height },
            command,
            terminal: self.terminal.as_deref() != Some("false"),
            after: after.and_then(Result::ok),
            keep_seconds: keep,
        })
    }
}

/// The beginning of what was sent, for a complaint about it.
fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(40).collect::<String>())
}

/// As authorization sees it.
fn resource_of(place: &Place) -> Resource {
    Resource::new(ResourceKind::Workspace)
        .in_organization(place.organization_id)
        .owned_by(place.owner_id)
}

/// Where the agent runs, if the caller may have a terminal there.
async fn allowed_place(app: &App, caller: &Caller, agent: AgentId) -> Result<Place, ApiError> {
    let place = terminal::find_place(app.db(), agent).await?.ok_or(ApiError::NotFound)?;
    caller.authorize(Action::Ssh, &resource_of(&place))?;
    Ok(place)
}

async fn open(
    State(app): State<App>,
    caller: Caller,
    Path(agent): Path<AgentId>,
    Query(wanted): Query<Wanted>,
    origin: Origin,
    headers: HeaderMap,
    upgrade: Upgrade,
) -> Result<Response, ApiError> {
    let place = allowed_place(&app, &caller, agent).await?;
    same_origin(&app, &headers)?;
    let wanted = wanted.check(&app, &caller)?;
    if !place.is_started || place.is_retired {
        return Err(ApiError::conflict(
            format!("The workspace of the agent {} does not run; start it.", place.agent_name),
            None,
        ));
    }
    let stream = app.streams.take(Holder::User(caller.id()))?;
    let upgrade = upgrade.map_err(|_| {
        ApiError::invalid("A terminal is a WebSocket; ask for one (Upgrade: websocket).")
    })?;
    let (user, workspace) = (caller.id(), place.workspace_id);
    let opened = line_of(agent, &place, wanted.reconnect);
    let begun = attachment::Attachment::begin(app.clone(), caller, agent, place, wanted).await?;
    // Nobody types where it is not written down who does.
    if let Err(error) = write_down(&app, user, &origin, opened).await {
        begun.give_up().await;
        return Err(error.into());
    }
    let (attachment, offset) = (begun.id(), begun.offset());
    tracing::info!(
        user.id = %user,
        workspace.id = %workspace,
        agent.id = %agent,
        attachment.id = %attachment,
        request.id = %origin.request_id,
        client.ip = %origin.ip,
        "terminal opened"
    );
    let mut response = upgrade
        .max_message_size(MOST_MESSAGE)
        .max_frame_size(MOST_MESSAGE)
        .write_buffer_size(0)
        .on_upgrade(move |socket| async move {
            let why = begun.talk(socket).await;
            drop(stream);
            tracing::info!(user.id = %user, attachment.id = %attachment, why, "terminal closed");
        });
    response.headers_mut().insert(OFFSET, HeaderValue::from(offset));
    Ok(response)
}

/// The audit log's line of an opened terminal.
fn line_of(agent: AgentId, place: &Place, shell: Uuid) -> Change {
    let fields = json!({ "workspace_id": place.workspace_id, "reconnect": shell });
    Change::new("connect", "workspace_agent", agent.0)
        .of(format!("{}/{}", place.workspace_name, place.agent_name))
        .within(place.organization_id)
        .with_diff(audit::diff(&Value::Null, &fields))
}

async fn write_down(
    app: &App,
    user: UserId,
    origin: &Origin,
    opened: Change,
) -> Result<(), DbError> {
    let mut work = app.begin().await?;
    audit::record(&mut work, user, origin, opened).await?;
    work.commit().await
}

/// Refuses pages of other sites: browsers send cookies with WebSockets whatever page asks.
fn same_origin(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let authority = |text: &str| text.parse::<Uri>().ok()?.authority().map(ToString::to_string);
    let from = origin.to_str().ok().and_then(authority);
    let host = headers.get(header::HOST).and_then(|it| it.to_str().ok());
    let ours = authority(&app.config.http.access_url);
    let is_ours = from.is_some_and(|from| host == Some(&from) || ours.as_ref() == Some(&from));
    if is_ours { Ok(()) } else { Err(ApiError::Forbidden) }
}
