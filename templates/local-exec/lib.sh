# Shared by plan and apply. Sourced with the template as working directory.

# Parameters travel in the environment under the SHA-256 of their names, so that any name can.
# parameter NAME DEFAULT
parameter() {
  hash=$(printf %s "$1" | { sha256sum 2>/dev/null || shasum -a 256; } | cut -c1-64)
  eval "printf %s \"\${CODER_PARAMETER_$hash-\$2}\""
}

# Prints stdin as a JSON string.
json() {
  printf '"'
  tr -d '\000-\010\013-\037' |
    sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e "s/$(printf '\t')/\\\\t/g" |
    awk 'NR > 1 { printf "\\n" } { printf "%s", $0 }'
  printf '"'
}

value() {
  printf %s "$1" | json
}

root=${TF_VAR_local_root:-}
root=${root:-$HOME/.local/share/berth/workspaces}
berth=${TF_VAR_berth:-}
berth=${berth:-berth}
# By the id, which a claim keeps. The name and the owner change hands with it.
dir=$root/${CODER_WORKSPACE_ID:-none}
greeting=$(parameter greeting Hello)
history=$(parameter history 3)
size=$(parameter size small)

case $(uname -m) in
  aarch64 | arm64) arch=arm64 ;;
  arm*) arch=armv7 ;;
  *) arch=amd64 ;;
esac
os=$(uname -s | tr '[:upper:]' '[:lower:]')

# The process that runs while the workspace is started, with its agent. Values travel in the
# agent's environment, not in the scripts' text: nothing in them is shell.
# process TOKEN-MEMBER
process() {
  cat <<JSON
    {
      "name": "agent",
      "type": "process",
      "agents": [
        {
          "name": "main",
          "os": "$os",
          "arch": "$arch",
          $1
          "env": {
            "GREETING": $(value "$greeting"),
            "HISTORY": $(value "$history"),
            "WORKSPACE_DIR": $(value "$dir"),
            "WORKSPACE_OWNER": $(value "${CODER_WORKSPACE_OWNER:-}")
          },
          "scripts": [
            {
              "display_name": "Startup Script",
              "script": $(json <scripts/startup.sh),
              "log_path": "startup.log",
              "run_on_start": true,
              "start_blocks_login": true
            },
            {
              "display_name": "Forget old greetings",
              "script": $(json <scripts/tidy.sh),
              "run_on_start": true
            }
          ],
          "apps": [
            {
              "slug": "welcome",
              "display_name": "Welcome",
              "command": $(value "cat '$dir/welcome.txt'")
            }
          ],
          "metadata": [
            {
              "key": "files",
              "display_name": "Files",
              "script": "ls \"\$WORKSPACE_DIR\" | wc -l",
              "interval": 30,
              "timeout": 5
            }
          ]
        }
      ]
    },
JSON
}

folder() {
  cat <<JSON
    {
      "name": "folder",
      "type": "folder",
      "metadata": [
        { "key": "folder", "value": $(value "$dir") },
        { "key": "size", "value": $(value "$size") }
      ]
    }
JSON
}
