set -eu
cd "$WORKSPACE_DIR"
printf '%s, %s!\n' "$GREETING" "$WORKSPACE_OWNER" | tee welcome.txt
cat welcome.txt >> greetings.txt
