//! The rule that classes a float initializer by how the graph uses it.
//! Order, sizes and digest are in `layout.rs`; the operators' own support is in `operators`.

use std::collections::HashMap;

use super::ParameterClass;
use crate::pb;

/// What one use of a tensor says about its class.
#[derive(Clone, Copy, PartialEq)]
enum Use {
    Learned,
    Statistic,
    Fixed,
}

/// Classes the initializers of a graph; `shape_rank` gives the rank of each float32 initializer to class, in file order.
///
/// - **statistic**: any use as a BatchNormalization's running mean (input 3) or variance (input 4), because a gradient
///   step there would fight the running average.
/// - **constant**: a rank-0 scalar (exporters write literals, epsilons and divisors like √d so, while a learnable
///   vector of one element has the shape [1]; a single number under one of an exporter's own names comes as rank 0 too);
///   a tensor whose every use is a slot that ONNX defines as a setting (Clip bounds, Pow's exponent, Resize's scales,
///   quantization scales, ...); and a tensor that nothing uses.
/// - **trainable**: the rest. A file cannot say "learnable", so a float mask or table of positions counts as trainable
///   too; export it as a Constant node or as a rank-0 scalar to keep it fixed.
pub(crate) fn classify<'g>(
    graph: &'g pb::GraphProto,
    float_initializers: &[(&'g str, usize)],
) -> HashMap<&'g str, ParameterClass> {
    let mut uses: HashMap<&str, Vec<Use>> = float_initializers.iter().map(|(name, _)| (*name, Vec::new())).collect();
    for node in &graph.node {
        for (slot, name) in node.input.iter().enumerate() {
            if let Some(uses) = uses.get_mut(name.as_str()) {
                let kind = use_of(&node.op_type, slot);
                if !uses.contains(&kind) {
                    uses.push(kind);
                }
            }
        }
    }
    float_initializers
        .iter()
        .map(|(name, rank)| {
            let uses = uses.get(name).map_or(&[][..], Vec::as_slice);
            (*name, class(*rank, uses))
        })
        .collect()
}

fn class(rank: usize, uses: &[Use]) -> ParameterClass {
    if uses.contains(&Use::Statistic) {
        ParameterClass::Statistic
    } else if rank == 0 || !uses.contains(&Use::Learned) {
        ParameterClass::Constant
    } else {
        ParameterClass::Trainable
    }
}

/// Slots are those of ONNX's operator specification, counted from 0.
fn use_of(operator: &str, slot: usize) -> Use {
    match (operator, slot) {
        ("BatchNormalization", 3 | 4) => Use::Statistic,
        ("Clip", 1 | 2)
        | ("Pow" | "Dropout" | "Resize" | "OneHot" | "Range" | "CastLike", 1..)
        | ("Upsample", 1)
        | ("Pad", 2)
        | ("Range" | "Shape" | "Size" | "ConstantOfShape", 0)
        | ("QuantizeLinear" | "DequantizeLinear", 1..) => Use::Fixed,
        _ => Use::Learned,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use crate::testing::{bytes, floats, graph, node};
    use crate::{Model, ParameterClass::*};

    #[test]
    fn each_use_gives_its_class() {
        let nodes = vec![
            node("Conv", &["x", "kernel"], &["a"]),
            node("BatchNormalization", &["a", "gamma", "beta", "mean", "variance"], &["b"]),
            node("Clip", &["b", "low", "high"], &["c"]),
            node("Pow", &["c", "exponent"], &["d"]),
            node("Mul", &["d", "literal"], &["e"]),
            node("Mul", &["e", "val_7"], &["e7"]),
            node("Mul", &["e7", "learned"], &["f"]),
            node("Add", &["f", "shared"], &["g"]),
            node("Clip", &["g", "shared"], &["y"]),
        ];
        let one = |name| floats(name, &[1], &[1.0]);
        let scalar = |name| floats(name, &[], &[1.0]);
        let initializers = vec![
            floats("kernel", &[1, 1, 1, 1], &[1.0]),
            one("gamma"),
            one("beta"),
            one("mean"),
            one("variance"),
            scalar("low"),
            one("high"),
            one("exponent"),
            scalar("literal"),
            one("learned"),
            one("shared"),
            one("unused"),
            one("val_7"),
        ];
        let model = Model::from_bytes(bytes(graph(&[-1, 1, 1, 1], &[-1, 1, 1, 1], nodes, initializers))).unwrap();
        let classes: Vec<_> = model.layout().parameters().iter().map(|spec| (spec.name.as_str(), spec.class)).collect();
        assert_eq!(
            classes,
            [
                ("kernel", Trainable),
                ("gamma", Trainable),
                ("beta", Trainable),
                ("mean", Statistic),
                ("variance", Statistic),
                ("low", Constant),
                ("high", Constant),
                ("exponent", Constant),
                ("literal", Constant),
                ("learned", Trainable),
                ("shared", Trainable),
                ("unused", Constant),
                ("val_7", Constant),
            ]
        );
        let exchanged: Vec<_> = model.layout().exchanged().map(|(spec, range)| (spec.name.as_str(), range)).collect();
        assert_eq!(exchanged.last().unwrap(), &("shared", 6..7));
        assert_eq!(model.weights().values(), [1.0; 7]);
    }
}
