//! The agreement: messages and services of the wire, identity, TLS, and who may call what.
//! No model, no training and no round logic lives here: both sides only meet in this crate.

pub mod authorization;
pub mod codec;
pub mod identity;
pub mod lines;
pub mod model_delta;
mod planes;
pub mod tls;
pub mod transfer;
pub mod update;

/// Generated from `fedge/*.proto`; a contract test fails when it drifts.
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used)]
mod fedge {
    pub mod enrolment {
        pub mod v1 {
            include!("gen/fedge.enrolment.v1.rs");
        }
    }
    pub mod federation {
        pub mod v1 {
            include!("gen/fedge.federation.v1.rs");
        }
    }
    pub mod feedback {
        pub mod v1 {
            include!("gen/fedge.feedback.v1.rs");
        }
    }
    pub mod model {
        pub mod v1 {
            include!("gen/fedge.model.v1.rs");
        }
    }
    pub mod operators {
        pub mod v1 {
            include!("gen/fedge.operators.v1.rs");
        }
    }
}

/// The version of the federation protocol that this fedge speaks, on both sides.
pub const FEDERATION_PROTOCOL: u32 = 3;

/// The Open Inference Protocol, generated from `inference.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used)]
pub mod inference {
    include!("gen/inference.rs");
}

/// Descriptors of the services that a node offers to callers, for server reflection; generated with the code.
pub const NODE_DESCRIPTORS: &[u8] = include_bytes!("gen/node.descriptors.bin");

pub use fedge::enrolment::v1 as enrolment;
pub use fedge::federation::v1 as federation;
pub use fedge::feedback::v1 as feedback;
pub use fedge::model::v1 as model;
pub use fedge::operators::v1 as operators;
