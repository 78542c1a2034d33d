//! The catalogue's entries. Sorted by name, so that a search can halve it; a test checks that.
//! Attribute-level limits of training are in `restrictions`.

use super::Operator;

const fn served(name: &'static str, since: i64) -> Operator {
    Operator { name, since, trainable: false }
}

const fn trained(name: &'static str, since: i64) -> Operator {
    Operator { name, since, trainable: true }
}

/// Left out on purpose: control flow (a subgraph each), operators whose output size depends on values rather than
/// shapes (Expand, Tile, ConstantOfShape, Range, NonZero, OneHot, Resize: a short file could ask for any amount of
/// memory), random ones (two nodes would answer differently), and string, sequence and training operators.
pub(super) const OPERATORS: &[Operator] = &[
    trained("Abs", 6),
    trained("Add", 7),
    served("And", 7),
    served("ArgMax", 1),
    served("ArgMin", 1),
    trained("AveragePool", 7),
    trained("BatchNormalization", 9),
    trained("Cast", 6),
    served("Ceil", 6),
    trained("Clip", 6),
    trained("Concat", 4),
    trained("Constant", 1),
    trained("Conv", 1),
    served("ConvInteger", 10),
    served("ConvTranspose", 1),
    served("Cos", 7),
    served("DepthToSpace", 1),
    served("DequantizeLinear", 10),
    trained("Div", 7),
    trained("Dropout", 7),
    served("DynamicQuantizeLinear", 11),
    served("Elu", 6),
    served("Equal", 7),
    trained("Erf", 9),
    trained("Exp", 6),
    trained("Flatten", 1),
    served("Floor", 6),
    trained("Gather", 1),
    trained("Gelu", 20),
    trained("Gemm", 7),
    trained("GlobalAveragePool", 1),
    served("GlobalMaxPool", 1),
    served("Greater", 7),
    served("GreaterOrEqual", 12),
    served("HardSigmoid", 6),
    served("HardSwish", 14),
    trained("Identity", 1),
    served("InstanceNormalization", 6),
    served("LayerNormalization", 17),
    trained("LeakyRelu", 6),
    served("Less", 7),
    served("LessOrEqual", 12),
    trained("Log", 6),
    trained("LogSoftmax", 1),
    trained("MatMul", 1),
    served("MatMulInteger", 10),
    served("Max", 6),
    trained("MaxPool", 1),
    served("Mean", 6),
    served("Min", 6),
    served("Mish", 18),
    trained("Mul", 7),
    trained("Neg", 6),
    served("Not", 1),
    served("Or", 7),
    served("PRelu", 7),
    served("Pad", 2),
    trained("Pow", 7),
    served("QuantizeLinear", 10),
    served("Reciprocal", 6),
    served("ReduceL2", 1),
    served("ReduceMax", 1),
    trained("ReduceMean", 1),
    served("ReduceMin", 1),
    trained("ReduceSum", 1),
    trained("Relu", 6),
    trained("Reshape", 5),
    served("Selu", 6),
    trained("Shape", 1),
    trained("Sigmoid", 6),
    served("Sin", 7),
    trained("Slice", 1),
    trained("Softmax", 1),
    served("Softplus", 1),
    served("Softsign", 1),
    served("SpaceToDepth", 1),
    served("Split", 2),
    trained("Sqrt", 6),
    trained("Squeeze", 1),
    trained("Sub", 7),
    served("Sum", 6),
    trained("Tanh", 6),
    trained("Transpose", 1),
    trained("Unsqueeze", 1),
    served("Where", 9),
];

/// Why an operator outside the catalogue is refused, and what to do.
pub(super) fn why_missing(name: &str) -> String {
    match name {
        "If" | "Loop" | "Scan" | "SequenceMap" => {
            "is control flow, which cannot be served or trained yet; export the model without it".to_owned()
        }
        "Expand" | "Tile" | "ConstantOfShape" | "Range" | "NonZero" | "OneHot" | "Resize" | "Upsample" => {
            "makes a tensor as large as its values say, so a hostile file could use up the memory; fold it into \
             constants (onnxsim) or export the model without it"
                .to_owned()
        }
        "RandomNormal" | "RandomUniform" | "RandomNormalLike" | "RandomUniformLike" | "Multinomial" | "Bernoulli" => {
            "is random, so two nodes would answer differently; export the model for inference".to_owned()
        }
        _ => "is not in fedge's operator catalogue; export the model without it, or open an issue".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_names_each_operator_once() {
        assert!(OPERATORS.windows(2).all(|pair| pair[0].name < pair[1].name));
    }
}
