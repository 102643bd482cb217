//! The provisioner protocol: generated gRPC code and its conversions from and to the domain.
