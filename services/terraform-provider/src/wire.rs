//! The generated protocol: Terraform's, go-plugin's, and the gRPC health check.

/// Terraform's plugin protocol, version 6.
pub(crate) mod tfplugin6 {
    #![expect(
        clippy::pedantic,
        clippy::allow_attributes,
        unreachable_pub,
        reason = "generated code"
    )]
    tonic::include_proto!("tfplugin6");
}

/// What a go-plugin host expects of every plugin.
pub(crate) mod plugin {
    #![expect(
        clippy::pedantic,
        clippy::allow_attributes,
        unreachable_pub,
        reason = "generated code"
    )]
    tonic::include_proto!("plugin");
}

/// The gRPC health check.
pub(crate) mod health {
    #![expect(
        clippy::pedantic,
        clippy::allow_attributes,
        unreachable_pub,
        reason = "generated code"
    )]
    tonic::include_proto!("grpc.health.v1");
}
