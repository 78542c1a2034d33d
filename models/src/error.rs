//! What can be wrong with a model, its weights or its package, said so that the reader can act on it.
//! Quantization has errors of its own, in `quantize`.

use std::path::PathBuf;

/// A model, weights or package that was refused, or a file that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file or directory could not be read or written.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried, e.g. "read".
        action: &'static str,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A stream of a model's bytes broke, or is not the file that it should be.
    #[error("cannot {action}: {source}")]
    Stream {
        /// What was tried, e.g. "read the base model's file".
        action: &'static str,
        /// The stream's answer.
        source: std::io::Error,
    },
    /// The bytes are no ONNX file, or only a part of one.
    #[error("not an ONNX file, or a truncated one ({bytes} bytes): {problem}; export or copy the file again")]
    NotOnnx {
        /// Length of what was given, in bytes.
        bytes: usize,
        /// Where and why the reading stopped.
        problem: String,
    },
    /// Something exceeds a bound that keeps hostile files from using up the machine.
    #[error("{what} is {size}, above the limit of {limit}")]
    TooLarge {
        /// What was measured, with its unit.
        what: String,
        /// What was found.
        size: u64,
        /// The most that is accepted.
        limit: u64,
    },
    /// The file uses a part of ONNX that is refused as a whole.
    #[error("{feature} is not supported: {advice}")]
    Unsupported {
        /// The part of ONNX, and where it is used.
        feature: String,
        /// What to do instead.
        advice: String,
    },
    /// One tensor is wrong.
    #[error("tensor {name:?}: {problem}")]
    Tensor {
        /// The tensor's name in the file.
        name: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// One node is wrong.
    #[error("node {node:?} ({operator}): {problem}")]
    Node {
        /// The node's name, or its first output where it has none.
        node: String,
        /// The node's operator.
        operator: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The graph as a whole is wrong.
    #[error("the graph {problem}")]
    Graph {
        /// What is wrong and what to do.
        problem: String,
    },
    /// A selection of parameters does not fit the model.
    #[error("{field} {problem}")]
    Selection {
        /// "trained" or "local".
        field: &'static str,
        /// What it names, and what there is.
        problem: String,
    },
    /// Weights do not fit the model.
    #[error("weights {problem}")]
    Weights {
        /// What is wrong and what to do.
        problem: String,
    },
    /// A samples array, or a preprocessing, does not fit the model.
    #[error("{what}: {problem}")]
    Input {
        /// Which input.
        what: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A package or its manifest is wrong.
    #[error("package {package}: {problem}")]
    Package {
        /// The package's name or directory.
        package: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The inference engine could not load or run the model.
    #[error("tract cannot {action} the model: {problem}")]
    Runtime {
        /// What was tried: "load" or "run".
        action: &'static str,
        /// tract's message.
        problem: String,
    },
}

impl ModelError {
    pub(crate) fn tensor(name: &str, problem: impl Into<String>) -> ModelError {
        ModelError::Tensor { name: shorten(name), problem: problem.into() }
    }

    pub(crate) fn graph(problem: impl Into<String>) -> ModelError {
        ModelError::Graph { problem: problem.into() }
    }

    pub(crate) fn node(node: &tract_onnx::pb::NodeProto, problem: impl Into<String>) -> ModelError {
        ModelError::Node { node: shorten(node_name(node)), operator: shorten(&node.op_type), problem: problem.into() }
    }

    pub(crate) fn input(what: impl Into<String>, problem: impl Into<String>) -> ModelError {
        ModelError::Input { what: what.into(), problem: problem.into() }
    }
}

/// The node's name, or its first output where the exporter left the name empty.
pub(crate) fn node_name(node: &tract_onnx::pb::NodeProto) -> &str {
    match (node.name.as_str(), node.output.first()) {
        ("", Some(output)) => output,
        (name, _) => name,
    }
}

/// A name from a file, cut to a length that fits a message.
pub(crate) fn shorten(name: &str) -> String {
    const SHOWN: usize = 120;
    if name.chars().count() <= SHOWN {
        return name.to_owned();
    }
    name.chars().take(SHOWN).chain("...".chars()).collect()
}
