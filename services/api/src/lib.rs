//! REST, server-sent events and WebSockets under /api/v2.
