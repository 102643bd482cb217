//! Subscriptions that all requests of this replica share.

/// What streams listen to.
#[derive(Clone, Default)]
pub(crate) struct Live {}
