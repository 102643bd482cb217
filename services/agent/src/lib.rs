//! The agent inside a workspace: scripts, lifecycle, logs, reinitialisation.
