//! Keeps the prebuilds user in the organizations and groups it needs.
