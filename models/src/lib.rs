//! The artefact that a fleet shares: one checked ONNX file, its operators, named parameters, quantizer and package.
//! Nothing here knows of networks, nodes, rounds or training; the wire types live in `proto`.

pub mod digest;
pub mod error;
pub mod external;
pub mod float;
mod growth;
pub mod layout;
pub mod lora;
pub mod mending;
pub mod model;
pub mod operators;
pub mod package;
pub mod preprocessing;
pub mod quantize;
pub mod weights;
mod wire;

#[cfg(test)]
mod testing;

pub use digest::{Digest, HashingWriter, ParseDigestError};
pub use error::ModelError;
pub use layout::{Exchange, Layout, ParameterClass, ParameterSpec, Selection};
pub use model::{ElementType, Interface, Model, PIECE_VALUES, Place, Places, TensorSignature};
pub use operators::UnsupportedOperator;
pub use package::{Manifest, Package, WriteBehind, Written};
pub use preprocessing::Preprocessing;
/// ONNX's protobuf types (IR 8, prost 0.14), as tract reads them.
pub use tract_onnx::pb;
pub use weights::Weights;
