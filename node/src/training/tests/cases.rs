//! Cases of the operators that classifiers of images are made of, by family: the smallest graphs that let a gradient flow.
//! What is checked of each is in `operators`; the other operators' cases are in `more_cases`.

use fedge_models::Model;

use super::build::{Attribute, Builder};
use Attribute::{Float, Int, Ints, Text};

type Attributes = &'static [(&'static str, Attribute)];

/// x [N, 2, 3] times a parameter.
pub(super) fn scaled(opset: i64) -> Builder {
    Builder::new(opset, &[2, 3]).parameter("w", &[2, 3]).node("Mul", "x w", "z")
}

/// As [`scaled`], squeezed into 0..1.
pub(super) fn positive() -> Builder {
    scaled(17).node("Sigmoid", "z", "s")
}

/// Images [N, 4, 5, 6] times a parameter a channel.
pub(super) fn images(opset: i64) -> Builder {
    Builder::new(opset, &[4, 5, 6]).parameter("w", &[4, 1, 1]).node("Mul", "x w", "z")
}

pub(super) fn elementwise_operators(check: &mut dyn FnMut(&str, &Model)) {
    for operator in ["Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Neg", "Abs", "Identity", "Dropout", "LeakyRelu", "Clip"]
    {
        check(operator, &scaled(17).node(operator, "z", "y").flat("y"));
    }
    for operator in ["Sqrt", "Log", "Exp"] {
        check(operator, &positive().node(operator, "s", "y").flat("y"));
    }
    check("LeakyRelu 0.3", &scaled(17).node_with("LeakyRelu", "z", "y", &[("alpha", Float(0.3))]).flat("y"));
    for approximation in ["none", "tanh"] {
        let model = scaled(20).node_with("Gelu", "z", "y", &[("approximate", Text(approximation))]).flat("y");
        check(approximation, &model);
    }
    let clip = scaled(17).floats("low", &[], vec![-0.2]).floats("high", &[], vec![0.3]);
    check("Clip by inputs", &clip.node("Clip", "z low high", "y").flat("y"));
    let clip = scaled(17).floats("high", &[], vec![0.1]).node("Clip", "z - high", "y");
    check("Clip from above", &clip.flat("y"));
    let clip = scaled(9).node_with("Clip", "z", "y", &[("min", Float(-0.2)), ("max", Float(0.3))]);
    check("Clip by attributes", &clip.flat("y"));
}

pub(super) fn powers_with_a_constant_exponent(check: &mut dyn FnMut(&str, &Model)) {
    for exponent in [2.0, 3.0, -1.0] {
        let model = scaled(17).floats("e", &[], vec![exponent]).node("Pow", "z e", "y").flat("y");
        check(&format!("Pow {exponent}"), &model);
    }
    for exponent in [0.5, -1.5] {
        let model = positive().floats("e", &[], vec![exponent]).node("Pow", "s e", "y").flat("y");
        check(&format!("Pow {exponent}"), &model);
    }
    let zero = scaled(17).floats("e", &[], vec![0.0]).node("Pow", "z e", "one").node("Add", "one w", "y");
    check("Pow 0", &zero.flat("y"));
}

pub(super) fn arithmetic_broadcasts_either_side(check: &mut dyn FnMut(&str, &Model)) {
    for operator in ["Add", "Sub", "Mul", "Div"] {
        for shape in [&[3][..], &[2, 1], &[1, 2, 3], &[1], &[1, 1, 3]] {
            let start =
                || Builder::new(17, &[2, 3]).parameter("w", &[3]).node("Mul", "x w", "z").spread("v", shape, 0.5, 2.0);
            check(&format!("{operator} {shape:?}"), &start().node(operator, "z v", "y").flat("y"));
            let model = start().node("Exp", "z", "e").node(operator, "v e", "y").flat("y");
            check(&format!("{operator} {shape:?} from the left"), &model);
        }
    }
    let literal = scaled(17).floats("two", &[], vec![2.0]).node("Div", "z two", "y");
    check("Div by a scalar", &literal.flat("y"));
}

pub(super) fn a_parameter_that_is_used_twice_gets_both_gradients(check: &mut dyn FnMut(&str, &Model)) {
    let model = scaled(17).node("Tanh", "z", "t").node("Mul", "t w", "u").node("Add", "u z", "y").flat("y");
    check("tied", &model);
}

pub(super) fn matrix_products(check: &mut dyn FnMut(&str, &Model)) {
    let start = |shape: &[i64]| Builder::new(17, shape).parameter("w", &[3, 4]);
    check("MatMul 2-D", &start(&[3]).node("MatMul", "x w", "y").model("y"));
    check("MatMul 3-D by 2-D", &start(&[2, 3]).node("MatMul", "x w", "y").flat("y"));
    check("MatMul 4-D by 2-D", &start(&[2, 2, 3]).node("MatMul", "x w", "y").flat("y"));
    let model = Builder::new(17, &[2, 3]).parameter("w", &[2, 2]).node("MatMul", "w x", "y").flat("y");
    check("MatMul 2-D by 3-D", &model);
    let model = Builder::new(17, &[1, 2, 3]).parameter("w", &[2, 3, 4]).node("MatMul", "x w", "y").flat("y");
    check("MatMul batched and broadcast", &model);
    check("MatMul by a vector", &Builder::new(17, &[2, 3]).parameter("w", &[3]).node("MatMul", "x w", "y").model("y"));
    check("MatMul of a vector", &Builder::new(17, &[2, 3]).parameter("w", &[2]).node("MatMul", "w x", "y").model("y"));
    let attention = start(&[2, 3])
        .node("MatMul", "x w", "q")
        .node_with("Transpose", "q", "k", &[("perm", Ints(&[0, 2, 1]))])
        .node("MatMul", "q k", "s")
        .node("Softmax", "s", "p")
        .node("MatMul", "p q", "y");
    check("attention", &attention.flat("y"));
}

pub(super) fn gemm_in_all_its_forms(check: &mut dyn FnMut(&str, &Model)) {
    let start = || Builder::new(17, &[4]).parameter("w", &[4, 3]).parameter("v", &[3, 4]).parameter("b", &[3]);
    check("Gemm", &start().node("Gemm", "x w b", "y").model("y"));
    check("Gemm without bias", &start().node("Gemm", "x w", "y").model("y"));
    let scales = [("alpha", Float(0.5)), ("beta", Float(-2.0)), ("transB", Int(1))];
    check("Gemm scaled, B transposed", &start().node_with("Gemm", "x v b", "y", &scales).model("y"));
    let transposed = start().node("Transpose", "x", "t").node_with("Gemm", "t w b", "y", &[("transA", Int(1))]);
    check("Gemm, A transposed", &transposed.model("y"));
    let wide = start().parameter("c", &[1, 3]).node("Gemm", "x w c", "y");
    check("Gemm with a row of biases", &wide.model("y"));
}

pub(super) fn convolutions(check: &mut dyn FnMut(&str, &Model)) {
    let conv = |channels: i64, groups: i64| {
        images(17).parameter("k", &[channels, 4 / groups, 3, 2]).parameter("b", &[channels])
    };
    check("Conv", &conv(3, 1).node("Conv", "z k b", "y").flat("y"));
    check("Conv without bias", &conv(2, 1).node("Conv", "z k", "y").flat("y"));
    let cases: [(&str, i64, Attributes); 10] = [
        ("strides", 1, &[("strides", Ints(&[2, 3]))]),
        ("dilations", 1, &[("dilations", Ints(&[2, 3]))]),
        ("pads", 1, &[("pads", Ints(&[1, 1, 1, 1]))]),
        ("uneven pads", 1, &[("pads", Ints(&[0, 1, 2, 0])), ("strides", Ints(&[2, 1]))]),
        ("groups", 2, &[("group", Int(2)), ("pads", Ints(&[1, 0, 1, 0]))]),
        ("depthwise", 4, &[("group", Int(4)), ("strides", Ints(&[2, 2]))]),
        ("depthwise, pads", 4, &[("group", Int(4)), ("pads", Ints(&[1, 1, 1, 1]))]),
        (
            "depthwise, uneven pads",
            4,
            &[("group", Int(4)), ("pads", Ints(&[0, 1, 2, 0])), ("dilations", Ints(&[2, 1]))],
        ),
        (
            "depthwise, strides and pads",
            4,
            &[("group", Int(4)), ("pads", Ints(&[2, 1, 1, 2])), ("strides", Ints(&[1, 3]))],
        ),
        ("groups, uneven pads", 2, &[("group", Int(2)), ("pads", Ints(&[1, 0, 0, 1])), ("dilations", Ints(&[1, 2]))]),
    ];
    for (case, groups, attributes) in cases {
        check(case, &conv(4, groups).node_with("Conv", "z k b", "y", attributes).flat("y"));
    }
    for padding in ["SAME_UPPER", "SAME_LOWER", "VALID"] {
        let model =
            conv(2, 1).node_with("Conv", "z k b", "y", &[("auto_pad", Text(padding)), ("strides", Ints(&[2, 2]))]);
        check(padding, &model.flat("y"));
    }
}

pub(super) fn convolutions_over_one_axis(check: &mut dyn FnMut(&str, &Model)) {
    let start = |groups: i64| {
        let signal = Builder::new(17, &[2, 7]).parameter("w", &[2, 1]).node("Mul", "x w", "z");
        signal.parameter("k", &[4, 2 / groups, 3]).parameter("b", &[4])
    };
    check("Conv 1-D", &start(1).node("Conv", "z k b", "y").flat("y"));
    let attributes = [("strides", Ints(&[2])), ("pads", Ints(&[2, 1])), ("dilations", Ints(&[2]))];
    check("Conv 1-D, uneven pads", &start(1).node_with("Conv", "z k b", "y", &attributes).flat("y"));
    check("Conv 1-D, groups", &start(2).node_with("Conv", "z k b", "y", &[("group", Int(2))]).flat("y"));
}

pub(super) fn pooling(check: &mut dyn FnMut(&str, &Model)) {
    let kernel = || ("kernel_shape", Ints(&[3, 2]));
    for operator in ["MaxPool", "AveragePool"] {
        let cases: [&[(&str, Attribute)]; 3] = [
            &[kernel()],
            &[kernel(), ("strides", Ints(&[2, 2]))],
            &[kernel(), ("strides", Ints(&[2, 1])), ("pads", Ints(&[1, 1, 1, 1]))],
        ];
        for attributes in cases {
            check(operator, &images(17).node_with(operator, "z", "y", attributes).flat("y"));
        }
    }
    let dilated = [kernel(), ("dilations", Ints(&[1, 3]))];
    check("MaxPool dilated", &images(17).node_with("MaxPool", "z", "y", &dilated).flat("y"));
    let counted = [kernel(), ("pads", Ints(&[1, 1, 1, 1])), ("count_include_pad", Int(1))];
    check("AveragePool counting pads", &images(17).node_with("AveragePool", "z", "y", &counted).flat("y"));
    let ceil = [("kernel_shape", Ints(&[2, 4])), ("strides", Ints(&[2, 3])), ("ceil_mode", Int(1))];
    check("MaxPool, rounding up", &images(17).node_with("MaxPool", "z", "y", &ceil).flat("y"));
    check("GlobalAveragePool", &images(17).node("Exp", "z", "e").node("GlobalAveragePool", "e", "y").flat("y"));
}

pub(super) fn normalization(check: &mut dyn FnMut(&str, &Model)) {
    let channels = |builder: Builder| {
        builder.parameter("scale", &[4]).parameter("bias", &[4]).parameter("mean", &[4]).spread(
            "variance",
            &[4],
            0.5,
            2.0,
        )
    };
    let model = channels(images(17).parameter("shift", &[4, 5, 6]).node("Add", "z shift", "a"))
        .node_with("BatchNormalization", "a scale bias mean variance", "y", &[("epsilon", Float(1e-3))])
        .flat("y");
    check("BatchNormalization of images", &model);
    let model = channels(Builder::new(17, &[3]).parameter("w", &[3, 4]).node("MatMul", "x w", "z"))
        .node("BatchNormalization", "z scale bias mean variance", "y")
        .model("y");
    check("BatchNormalization of rows", &model);
    for operator in ["Softmax", "LogSoftmax"] {
        for axis in [1, -1, 2] {
            check(operator, &scaled(17).node_with(operator, "z", "y", &[("axis", Int(axis))]).flat("y"));
        }
    }
    check("Softmax before operator set 13", &scaled(11).node("Softmax", "z", "y").flat("y"));
}

pub(super) fn operators_that_move_numbers(check: &mut dyn FnMut(&str, &Model)) {
    check(
        "Flatten 2",
        &scaled(17)
            .node_with("Flatten", "z", "f", &[("axis", Int(2))])
            .integers("s", &[-1, 6])
            .node("Reshape", "f s", "y")
            .model("y"),
    );
    let reshape = |target: &[i64]| scaled(17).integers("s", target).node("Reshape", "z s", "r").node("Tanh", "r", "y");
    for target in [&[0, -1][..], &[-1, 3, 2], &[0, 3, 2], &[-1, 6]] {
        check(&format!("Reshape {target:?}"), &reshape(target).flat("y"));
    }
    let model = scaled(17).node_with("Transpose", "z", "t", &[("perm", Ints(&[0, 2, 1]))]).parameter("v", &[3, 2]);
    check("Transpose", &model.node("Mul", "t v", "y").flat("y"));
    let model = scaled(17).integers("axes", &[1, -1]).node("Unsqueeze", "z axes", "u").node("Tanh", "u", "t");
    check("Unsqueeze, Squeeze", &model.node("Squeeze", "t axes", "y").flat("y"));
    let old = scaled(11).node_with("Unsqueeze", "z", "u", &[("axes", Ints(&[1]))]);
    check("Unsqueeze, Squeeze by attribute", &old.node_with("Squeeze", "u", "y", &[("axes", Ints(&[1]))]).flat("y"));
    let model = scaled(17).node("Tanh", "z", "t").node_with("Concat", "z t x z", "y", &[("axis", Int(2))]);
    check("Concat", &model.flat("y"));
}

pub(super) fn reductions(check: &mut dyn FnMut(&str, &Model)) {
    for operator in ["ReduceMean", "ReduceSum"] {
        let start = |opset| scaled(opset).node("Exp", "z", "e");
        for keep in [0, 1] {
            let model =
                start(18).integers("axes", &[-1]).node_with(operator, "e axes", "y", &[("keepdims", Int(keep))]);
            check(operator, &model.flat("y"));
        }
        let both =
            Builder::new(18, &[2, 2, 3]).parameter("w", &[2, 2, 3]).node("Mul", "x w", "z").integers("axes", &[1, 3]);
        check(operator, &both.node_with(operator, "z axes", "y", &[("keepdims", Int(0))]).model("y"));
        let old = start(11).node_with(operator, "e", "y", &[("axes", Ints(&[1])), ("keepdims", Int(0))]);
        check(operator, &old.model("y"));
    }
}

pub(super) fn shape_arithmetic_as_older_exporters_write_it(check: &mut dyn FnMut(&str, &Model)) {
    let model = scaled(17)
        .integers_of("zero", &[], &[0])
        .integers("axis", &[0])
        .integers("rest", &[-1])
        .node("Shape", "z", "shape")
        .node("Gather", "shape zero", "batch")
        .node_with("Cast", "batch", "batch64", &[("to", Int(7))])
        .node("Unsqueeze", "batch64 axis", "first")
        .node_with("Concat", "first rest", "target", &[("axis", Int(0))])
        .node("Reshape", "z target", "y")
        .model("y");
    check("x.view(x.size(0), -1)", &model);
    let model = scaled(17)
        .integers("one", &[1])
        .integers("three", &[3])
        .integers("two", &[2])
        .node("Shape", "z", "shape")
        .node("Slice", "shape one three", "inner")
        .node("Mul", "inner two", "doubled")
        .node("Div", "doubled two", "halved")
        .node_with("Concat", "minus halved", "target", &[("axis", Int(0))])
        .integers("minus", &[-1])
        .node("Reshape", "z target", "y")
        .flat("y");
    check("sliced shapes", &model);
}
