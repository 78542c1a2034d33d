//! The checked-in generated code equals what the protos generate now.
//! `FEDGE_UPDATE_GENERATED=1` writes it instead of comparing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use prost::Message;

/// Every `.proto` file of the project, relative to the `proto` folder.
pub const PROTOS: [&str; 6] = [
    "inference.proto",
    "fedge/model.proto",
    "fedge/enrolment.proto",
    "fedge/federation.proto",
    "fedge/operators.proto",
    "fedge/feedback.proto",
];

/// The services that a node offers to callers.
const NODE_PROTOS: [&str; 2] = ["inference.proto", "fedge/feedback.proto"];

/// The `proto` folder.
pub fn proto_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto")
}

#[test]
fn checked_in_code_equals_what_the_protos_generate() {
    let folder = proto_folder();
    let scratch = tempfile::tempdir().expect("temporary folder");
    let descriptors = protox::compile(PROTOS, [&folder]).expect("the protos compile");
    tonic_prost_build::configure()
        .codec_path("crate::codec::BoundedCodec")
        .btree_map(".")
        .bytes(".fedge.model.v1.Chunk.data")
        .bytes(".inference")
        .emit_rerun_if_changed(false)
        .out_dir(scratch.path())
        .compile_fds(descriptors)
        .expect("code generation");

    // What server reflection shows of a node.
    let node = protox::compile(NODE_PROTOS, [&folder]).expect("the node's protos compile");
    std::fs::write(scratch.path().join("node.descriptors.bin"), node.encode_to_vec()).expect("descriptors");

    let generated = files(scratch.path());
    let checked_in_folder = folder.join("src/gen");
    if std::env::var_os("FEDGE_UPDATE_GENERATED").is_some() {
        for (name, text) in &generated {
            std::fs::write(checked_in_folder.join(name), text).expect("writing generated code");
        }
    }
    let checked_in = files(&checked_in_folder);
    assert_eq!(generated.keys().collect::<Vec<_>>(), checked_in.keys().collect::<Vec<_>>(), "files of proto/src/gen");
    for (name, text) in &generated {
        assert!(checked_in[name] == *text, "proto/src/gen/{name} drifted from its .proto: run `just protos`");
    }
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    std::fs::read_dir(folder)
        .expect("folder")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "rs" || e == "bin"))
        .map(|path| {
            let name = path.file_name().expect("name").to_string_lossy().into_owned();
            (name, std::fs::read(&path).expect("content"))
        })
        .collect()
}
