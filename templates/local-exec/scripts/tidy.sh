cd "$WORKSPACE_DIR" || exit 1
if [ -e greetings.txt ]; then
  tail -n "$HISTORY" greetings.txt > greetings.new && mv greetings.new greetings.txt
fi
