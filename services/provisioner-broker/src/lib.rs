//! gRPC for provisioner daemons: jobs, logs, results, files; the reaper.
