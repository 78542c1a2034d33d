//! The catalogue's entries. Sorted by name, so that a search can halve it; a test checks that.
//! Attribute-level limits of training are in `restrictions`.

use super::Operator;

const fn served(name: &'static str, since: i64) -> Operator {
    Operator { name, since, trainable: false }
}

const fn trained(name: &'static str, since: i64) -> Operator {
    Operator { name, since, trainable: true }
}

/// Left out on purpose: control flow (a subgraph each), operators whose output size depends on data (NonZero, OneHot),
/// random ones (two nodes would answer differently), and string, sequence and training operators. Those that make a tensor
/// as large as their values say (Expand, Tile, ConstantOfShape, Range, Resize) are bounded in `model/sizes` and `growth`.
pub(super) const OPERATORS: &[Operator] = &[
    trained("Abs", 6),
    trained("Add", 7),
    trained("And", 7),
    served("ArgMax", 1),
    served("ArgMin", 1),
    trained("AveragePool", 7),
    trained("BatchNormalization", 9),
    trained("Cast", 6),
    trained("Ceil", 6),
    trained("Clip", 6),
    trained("Concat", 4),
    trained("Constant", 1),
    trained("ConstantOfShape", 9),
    trained("Conv", 1),
    served("ConvInteger", 10),
    trained("ConvTranspose", 1),
    trained("Cos", 7),
    trained("DepthToSpace", 1),
    served("DequantizeLinear", 10),
    trained("Div", 7),
    trained("Dropout", 7),
    served("DynamicQuantizeLinear", 11),
    trained("Einsum", 12),
    trained("Elu", 6),
    trained("Equal", 7),
    trained("Erf", 9),
    trained("Exp", 6),
    trained("Expand", 8),
    trained("Flatten", 1),
    trained("Floor", 6),
    trained("GRU", 7),
    trained("Gather", 1),
    trained("Gelu", 20),
    trained("Gemm", 7),
    trained("GlobalAveragePool", 1),
    trained("GlobalMaxPool", 1),
    trained("Greater", 7),
    trained("GreaterOrEqual", 12),
    trained("GroupNormalization", 18),
    trained("HardSigmoid", 6),
    trained("HardSwish", 14),
    trained("Identity", 1),
    trained("InstanceNormalization", 6),
    trained("LSTM", 7),
    trained("LayerNormalization", 17),
    trained("LeakyRelu", 6),
    trained("Less", 7),
    trained("LessOrEqual", 12),
    trained("Log", 6),
    trained("LogSoftmax", 1),
    trained("MatMul", 1),
    served("MatMulInteger", 10),
    trained("Max", 6),
    trained("MaxPool", 1),
    trained("Mean", 6),
    trained("Min", 6),
    trained("Mish", 18),
    trained("Mod", 10),
    trained("Mul", 7),
    trained("Neg", 6),
    trained("Not", 1),
    trained("Or", 7),
    trained("PRelu", 7),
    trained("Pad", 2),
    trained("Pow", 7),
    served("QuantizeLinear", 10),
    trained("Range", 11),
    trained("Reciprocal", 6),
    trained("ReduceL1", 1),
    trained("ReduceL2", 1),
    trained("ReduceLogSum", 1),
    trained("ReduceLogSumExp", 1),
    trained("ReduceMax", 1),
    trained("ReduceMean", 1),
    trained("ReduceMin", 1),
    trained("ReduceSum", 1),
    trained("ReduceSumSquare", 1),
    trained("Relu", 6),
    trained("Reshape", 5),
    trained("Resize", 10),
    served("Round", 11),
    trained("Selu", 6),
    trained("Shape", 1),
    trained("Sigmoid", 6),
    served("Sign", 9),
    trained("Sin", 7),
    trained("Size", 1),
    trained("Slice", 1),
    trained("Softmax", 1),
    trained("Softplus", 1),
    trained("Softsign", 1),
    trained("SpaceToDepth", 1),
    trained("Split", 2),
    trained("Sqrt", 6),
    trained("Squeeze", 1),
    trained("Sub", 7),
    trained("Sum", 6),
    trained("Tanh", 6),
    trained("Tile", 6),
    trained("Transpose", 1),
    trained("Unsqueeze", 1),
    trained("Where", 9),
];

/// Why an operator outside the catalogue is refused, and what to do.
pub(super) fn why_missing(name: &str) -> String {
    match name {
        "If" | "Loop" | "Scan" | "SequenceMap" => {
            "is control flow, which cannot be served or trained yet; export the model without it".to_owned()
        }
        "NonZero" | "OneHot" | "Upsample" => {
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
