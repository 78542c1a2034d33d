//! Reads a node's attributes by name, with ONNX's defaults given by the caller.
//! What an attribute means to an operator is decided where it is asked for.

use crate::pb::{AttributeProto, NodeProto, TensorProto};

fn find<'n>(node: &'n NodeProto, name: &str) -> Option<&'n AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name == name)
}

pub(crate) fn has(node: &NodeProto, name: &str) -> bool {
    find(node, name).is_some()
}

pub(crate) fn int(node: &NodeProto, name: &str, default: i64) -> i64 {
    find(node, name).map_or(default, |attribute| attribute.i)
}

pub(crate) fn float(node: &NodeProto, name: &str, default: f32) -> f32 {
    find(node, name).map_or(default, |attribute| attribute.f)
}

/// Empty where the attribute is missing.
pub(crate) fn ints<'n>(node: &'n NodeProto, name: &str) -> &'n [i64] {
    find(node, name).map_or(&[], |attribute| &attribute.ints)
}

/// Empty where the attribute is missing.
pub(crate) fn text<'n>(node: &'n NodeProto, name: &str) -> &'n [u8] {
    find(node, name).map_or(&[], |attribute| &attribute.s)
}

pub(crate) fn tensor<'n>(node: &'n NodeProto, name: &str) -> Option<&'n TensorProto> {
    find(node, name)?.t.as_ref()
}

/// Empty where the attribute is missing.
pub(crate) fn floats<'n>(node: &'n NodeProto, name: &str) -> &'n [f32] {
    find(node, name).map_or(&[], |attribute| &attribute.floats)
}

/// Empty where the attribute is missing.
pub(crate) fn strings<'n>(node: &'n NodeProto, name: &str) -> &'n [Vec<u8>] {
    find(node, name).map_or(&[], |attribute| &attribute.strings)
}
