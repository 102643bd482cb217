//! Compiles the protocol with protox: no protoc is needed to build Berth.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = "../../proto/berth/provisioner/v1/provisioner.proto";
    println!("cargo:rerun-if-changed={file}");
    let descriptors = protox::compile([file], ["../../proto"])?;
    // In a result, maps are sorted: the same result then always has the same bytes.
    tonic_prost_build::configure()
        .btree_map(".berth.provisioner.v1.Agent.env")
        .compile_fds(descriptors)?;
    // The generator writes `#[allow(non_camel_case_types)]`, which this workspace's lints refuse.
    let out = std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    let generated = std::path::PathBuf::from(out).join("berth.provisioner.v1.rs");
    let code = std::fs::read_to_string(&generated)?;
    std::fs::write(&generated, code.replace("#[allow(non_camel_case_types)]", ""))?;
    Ok(())
}
