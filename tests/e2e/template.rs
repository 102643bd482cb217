//! Exec templates that the stories push. Their programs are plain shell: fast, and no different
//! from any other tool to the daemon.

use berth_testkit::Archive;

/// One parameter with three values, and a preset with a pool for each of `pools` (preset, size).
fn manifest(pools: &[(&str, i32)]) -> String {
    let mut text = String::from(
        r#"version = 1
plan = "plan.sh"
apply = "apply.sh"

[[parameters]]
name = "size"
type = "string"
default = "medium"
mutable = true
options = [
    { name = "Small", value = "small" },
    { name = "Medium", value = "medium" },
    { name = "Large", value = "large" },
]
"#,
    );
    for (preset, instances) in pools {
        let head = format!("\n[[presets]]\nname = \"{preset}\"\n");
        let values = format!("parameters = {{ size = \"{preset}\" }}\n");
        let pool = format!("prebuilds = {{ instances = {instances} }}\n");
        text.extend([head, values, pool]);
    }
    text
}

/// What the plan of every template here answers, but for [`replacing`].
const PLAN: &str = r#"#!/bin/sh
cat > /dev/null
echo '{"resources": [{"name": "thing", "type": "e2e_thing"}]}'
"#;

/// Does nothing and has no agent: a prebuild is ready as soon as it is built. While the file
/// `hold` exists in the stack's folder, claim builds wait.
const APPLY_PLAIN: &str = r#"#!/bin/sh
cat > /dev/null
while [ -n "${CODER_WORKSPACE_IS_PREBUILD_CLAIM:-}" ] && [ -e "$E2E_DIR/hold" ]; do sleep 0.05; done
if [ "$CODER_WORKSPACE_TRANSITION" = delete ]; then
  echo '{"state": {}, "resources": []}'
else
  echo '{"state": {"made": true}, "resources": [{"name": "thing", "type": "e2e_thing"}]}'
fi
"#;

/// What [`secretive`] keeps in its state. Its programs put it together only while they run.
pub(crate) const SECRET: &str = "swordfish-3d1f7c";

/// Keeps a secret in its state, and fails where it does not get it back.
const APPLY_SECRETIVE: &str = r#"#!/bin/sh
set -eu
secret="sword$(printf fish-3d1f7c)"
if [ "$CODER_WORKSPACE_TRANSITION" = start ]; then
  cat > /dev/null
else
  grep -q "$secret"
fi
echo "{\"state\": {\"password\": \"$secret\"}, \"resources\": []}"
"#;

/// Prebuilds are never made.
const APPLY_FAILING: &str = r#"#!/bin/sh
cat > /dev/null
echo '{"state": {}, "resources": []}'
[ "$CODER_WORKSPACE_TRANSITION" = delete ]
"#;

/// While the file `hold` exists in the stack's folder, prebuilds wait for their end.
const APPLY_HELD: &str = r#"#!/bin/sh
cat > /dev/null
while [ "$CODER_WORKSPACE_IS_PREBUILD$CODER_WORKSPACE_TRANSITION" = truestart ] && [ -e "$E2E_DIR/hold" ]; do sleep 0.05; done
if [ "$CODER_WORKSPACE_TRANSITION" = delete ]; then
  echo '{"state": {}, "resources": []}'
else
  echo '{"state": {"made": true}, "resources": [{"name": "thing", "type": "e2e_thing"}]}'
fi
"#;

/// Runs an agent as a local process. Its startup script adds a line with the owner's name to
/// `starts` in the workspace's folder. An agent that runs already keeps its token, which the
/// environment carries on a claim build (for a template's only agent under the digest of "").
/// The owner's session is left in the file `session` of the workspace's folder. Claim builds wait while
/// the file `hold` exists in the stack's folder, and fail while `fail` does.
const APPLY_AGENT: &str = r#"#!/bin/sh
set -eu
cat > /dev/null
dir="$BERTH_LOCAL_ROOT/$CODER_WORKSPACE_ID"
while [ -n "${CODER_WORKSPACE_IS_PREBUILD_CLAIM:-}" ] && [ -e "$E2E_DIR/hold" ]; do sleep 0.05; done
if [ -n "${CODER_WORKSPACE_IS_PREBUILD_CLAIM:-}" ] && [ -e "$E2E_DIR/fail" ]; then
  echo "no disk left for $CODER_WORKSPACE_OWNER_NAME" >&2
  exit 1
fi
if [ "$CODER_WORKSPACE_TRANSITION" != start ]; then
  "$BERTH" agent --stop --dir "$dir"
  if [ "$CODER_WORKSPACE_TRANSITION" = delete ]; then rm -rf "$dir"; fi
  echo '{"state": {}, "resources": []}'
  exit 0
fi
mkdir -p "$dir"
running="${CODER_RUNNING_WORKSPACE_AGENT_TOKEN_e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855:-}"
token="${running:-$(cat /proc/sys/kernel/random/uuid)}"
# Made before the agent starts: the result must name the token that the agent has.
printf '%s' "$token" > "$dir/token"
printf '%s' "$CODER_WORKSPACE_OWNER_SESSION_TOKEN" > "$dir/session"
export BERTH_AGENT_URL="$CODER_AGENT_URL" BERTH_AGENT_TOKEN="$token"
"$BERTH" agent --detach --dir "$dir" >&2
cat <<END
{"state": {"dir": "$dir"}, "resources": [{"name": "thing", "type": "e2e_thing", "agents": [{
  "name": "main", "os": "linux", "arch": "amd64", "directory": "$dir", "token": "$token",
  "scripts": [{"display_name": "Startup", "run_on_start": true, "start_blocks_login": true,
    "script": "echo \"hello \$CODER_WORKSPACE_OWNER_NAME\"; echo \"\$CODER_WORKSPACE_OWNER_NAME\" >> '$dir/starts'"}]}]}]}
END
"#;

/// Runs two agents, `one` and `two`, as local processes. Each adds a line with the owner's name to
/// `starts` in a folder of its own. For anybody but the prebuilds user `two` then writes 3 MB of log.
const APPLY_TWO_AGENTS: &str = r#"#!/bin/sh
set -eu
cat > /dev/null
dir="$BERTH_LOCAL_ROOT/$CODER_WORKSPACE_ID"
if [ "$CODER_WORKSPACE_TRANSITION" != start ]; then
  for name in one two; do "$BERTH" agent --stop --dir "$dir/$name"; done
  if [ "$CODER_WORKSPACE_TRANSITION" = delete ]; then rm -rf "$dir"; fi
  echo '{"state": {}, "resources": []}'
  exit 0
fi
export BERTH_AGENT_URL="$CODER_AGENT_URL" BERTH_AGENT_TOKEN
agents=
for name in one two; do
  hash=$(printf %s "$CODER_WORKSPACE_ID-$name" | sha256sum | cut -d ' ' -f 1)
  eval "token=\${CODER_RUNNING_WORKSPACE_AGENT_TOKEN_$hash:-}"
  BERTH_AGENT_TOKEN="${token:-$(cat /proc/sys/kernel/random/uuid)}"
  mkdir -p "$dir/$name"
  "$BERTH" agent --detach --dir "$dir/$name" >&2
  more=true
  if [ $name = two ]; then more="[ \$CODER_WORKSPACE_OWNER_NAME = prebuilds ] || yes a-line-of-some-forty-characters-or-so | head -c 3000000"; fi
  agents="$agents${agents:+,}{\"id\": \"$CODER_WORKSPACE_ID-$name\", \"name\": \"$name\", \"os\": \"linux\", \"arch\": \"amd64\", \"directory\": \"$dir/$name\",
    \"token\": \"$BERTH_AGENT_TOKEN\", \"scripts\": [{\"display_name\": \"Startup\", \"run_on_start\": true,
      \"script\": \"echo \$CODER_WORKSPACE_OWNER_NAME >> starts; $more\"}]}"
done
printf '%s\n' "{\"state\": {}, \"resources\": [{\"name\": \"thing\", \"type\": \"e2e_thing\", \"agents\": [$agents]}]}"
"#;

/// A claim replaces its disk, and says so.
const PLAN_REPLACING: &str = r#"#!/bin/sh
cat > /dev/null
if [ -n "${CODER_WORKSPACE_IS_PREBUILD_CLAIM:-}" ]; then
  echo '{"resources": [{"name": "thing", "type": "e2e_thing"}],
    "replacements": [{"resource": "e2e_disk.home", "paths": ["owner", "size"]}]}'
else
  echo '{"resources": [{"name": "thing", "type": "e2e_thing"}]}'
fi
"#;

fn archive(pools: &[(&str, i32)], plan: &str, apply: &str) -> Vec<u8> {
    Archive::default()
        .file("template.toml", &manifest(pools))
        .file("plan.sh", plan)
        .file("apply.sh", apply)
        .bytes()
}

/// Workspaces without agents.
pub(crate) fn plain(pools: &[(&str, i32)]) -> Vec<u8> {
    archive(pools, PLAN, APPLY_PLAIN)
}

/// Workspaces whose state has [`SECRET`] in it.
pub(crate) fn secretive() -> Vec<u8> {
    archive(&[], PLAN, APPLY_SECRETIVE)
}

/// Workspaces whose start fails by the template's own fault.
pub(crate) fn failing(pools: &[(&str, i32)]) -> Vec<u8> {
    archive(pools, PLAN, APPLY_FAILING)
}

/// Workspaces whose prebuilds take as long as the test wants.
pub(crate) fn held(pools: &[(&str, i32)]) -> Vec<u8> {
    archive(pools, PLAN, APPLY_HELD)
}

/// Workspaces with one agent each, a local process.
pub(crate) fn with_agent(pools: &[(&str, i32)]) -> Vec<u8> {
    archive(pools, PLAN, APPLY_AGENT)
}

/// Workspaces with two agents each, local processes.
pub(crate) fn with_two_agents(pools: &[(&str, i32)]) -> Vec<u8> {
    archive(pools, PLAN, APPLY_TWO_AGENTS)
}

/// Workspaces whose claim replaces a resource.
pub(crate) fn replacing(pools: &[(&str, i32)]) -> Vec<u8> {
    archive(pools, PLAN_REPLACING, APPLY_PLAIN)
}

/// A template whose presets are `presets`, TOML.
pub(crate) fn with_presets(presets: &str) -> Vec<u8> {
    Archive::default()
        .file("template.toml", &format!("{}\n{presets}", manifest(&[])))
        .file("plan.sh", PLAN)
        .file("apply.sh", APPLY_PLAIN)
        .bytes()
}
