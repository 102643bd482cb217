//! The main that all services share: config, telemetry, admin port, signals, drain.
