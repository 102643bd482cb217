//! Autostart, autostop, dormancy and purges of ordinary workspaces.
