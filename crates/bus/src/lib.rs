//! NATS: subjects, streams, the event envelope, publishing and consuming.
