//! What services share that needs both db and bus: unit of work, outbox relay, builder.
