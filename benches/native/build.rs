//! The contract, compiled from the one file that states it; no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = "../../python/flx_api/proto";
    let file = "flx/v1/daemon.proto";
    println!("cargo:rerun-if-changed={root}/{file}");
    let described = protox::compile([file], [root])?;
    tonic_prost_build::configure().build_client(false).compile_fds(described)?;
    Ok(())
}
