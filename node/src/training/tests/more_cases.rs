//! Cases of the operators beyond plain image classifiers, by family: smallest graphs, as in `cases`.
//! What is checked of each is in `operators`.

use fedge_models::Model;

use super::build::{Attribute, Builder};
use super::cases::{images, positive, scaled};
use Attribute::{Float, Int, Ints, Numbers, Text, Texts};

type Check<'c> = &'c mut dyn FnMut(&str, &Model);

pub(super) fn activations(check: Check<'_>) {
    for operator in ["Elu", "Selu", "Softplus", "Softsign", "Mish", "HardSigmoid", "HardSwish", "Sin", "Cos"] {
        check(operator, &scaled(18).node(operator, "z", "y").flat("y"));
    }
    check("Reciprocal", &positive().node("Reciprocal", "s", "y").flat("y"));
    check("Elu 0.3", &scaled(17).node_with("Elu", "z", "y", &[("alpha", Float(0.3))]).flat("y"));
    let gate = [("alpha", Float(1.3)), ("beta", Float(0.4))];
    check("HardSigmoid 1.3", &scaled(17).node_with("HardSigmoid", "z", "y", &gate).flat("y"));
    for shape in [&[3][..], &[1], &[2, 1], &[1, 2, 3]] {
        check("PRelu", &scaled(17).parameter("slope", shape).node("PRelu", "z slope", "y").flat("y"));
    }
    for operator in ["Floor", "Ceil"] {
        let model = scaled(17).node(operator, "z", "f").node("Sub", "z f", "y");
        check(operator, &model.flat("y"));
    }
}

pub(super) fn arithmetic_of_many(check: Check<'_>) {
    for operator in ["Sum", "Mean", "Max", "Min"] {
        let start = scaled(17).parameter("a", &[3]).parameter("b", &[2, 1]);
        check(operator, &start.node(operator, "z a b", "y").flat("y"));
        check(operator, &scaled(17).node(operator, "z", "y").flat("y"));
    }
    let tensor = positive().floats("e", &[3], vec![2.0, 0.5, 1.5]).node("Pow", "s e", "y");
    check("Pow of a tensor", &tensor.flat("y"));
}

pub(super) fn logic(check: Check<'_>) {
    for operator in ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"] {
        let model = scaled(17).floats("limit", &[3], vec![0.1, -0.2, 0.3]).node(operator, "z limit", "c");
        let model = model.node("Neg", "z", "n").node("Where", "c z n", "y");
        check(operator, &model.flat("y"));
    }
    for operator in ["And", "Or"] {
        let model = scaled(17).floats("low", &[], vec![-0.3]).floats("high", &[1], vec![0.3]);
        let model = model.node("Greater", "z low", "a").node("Less", "z high", "b").node(operator, "a b", "c");
        let model = model.node("Not", "c", "d").node("Exp", "z", "e").node("Where", "d z e", "y");
        check(operator, &model.flat("y"));
    }
    let model = scaled(17).floats("limit", &[], vec![0.1]).node("Greater", "z limit", "c");
    let model = model.node_with("Cast", "c", "f", &[("to", Int(1))]).node("Mul", "f z", "y");
    check("Cast of truth values", &model.flat("y"));
    let model = scaled(17).parameter("row", &[1, 3]).parameter("column", &[2, 1]).floats("limit", &[], vec![0.0]);
    let model = model.node("Greater", "x limit", "c").node("Where", "c row column", "y");
    check("Where of three shapes", &model.flat("y"));
}

pub(super) fn selections(check: Check<'_>) {
    let slice = |starts: &[i64], ends: &[i64], axes: &[i64], steps: &[i64]| {
        let model = images(17).integers("s", starts).integers("e", ends).integers("a", axes).integers("t", steps);
        model.node("Slice", "z s e a t", "y").flat("y")
    };
    check("Slice", &slice(&[1, 0], &[4, 3], &[2, 1], &[1, 2]));
    check("Slice to the end", &slice(&[-2], &[i64::MAX], &[3], &[1]));
    let old = [("starts", Ints(&[1])), ("ends", Ints(&[3])), ("axes", Ints(&[1]))];
    check("Slice by attributes", &images(9).node_with("Slice", "z", "y", &old).flat("y"));
    let gather = |shape: &[i64], indices: &[i64]| images(17).integers_of("i", shape, indices);
    let model = gather(&[3], &[2, 0, 2]).node_with("Gather", "z i", "y", &[("axis", Int(1))]);
    check("Gather", &model.flat("y"));
    let model = gather(&[], &[-1]).node_with("Gather", "z i", "y", &[("axis", Int(2))]);
    check("Gather one", &model.flat("y"));
    let model = gather(&[2, 2], &[0, 1, 3, 3]).node_with("Gather", "z i", "y", &[("axis", Int(3))]);
    check("Gather a table", &model.flat("y"));
    let model =
        Builder::new(17, &[4]).parameter("table", &[5, 3]).floats("five", &[], vec![5.0]).node("Mul", "x five", "m");
    let model =
        model.node("Abs", "m", "p").node_with("Cast", "p", "i", &[("to", Int(7))]).node("Gather", "table i", "y");
    check("an embedding", &model.flat("y"));
    for (opset, inputs, attributes) in [
        (11, "z", &[("axis", Int(2)), ("split", Ints(&[2, 3]))][..]),
        (13, "z parts", &[("axis", Int(2))]),
        (18, "z", &[("axis", Int(3)), ("num_outputs", Int(2))]),
    ] {
        let model = images(opset).integers("parts", &[2, 3]).node_with("Split", inputs, "a b", attributes);
        let model = model.node("Exp", "a", "c").node_with(
            "Concat",
            "c b",
            "y",
            &[("axis", if opset == 18 { Int(3) } else { Int(2) })],
        );
        check(&format!("Split {opset}"), &model.flat("y"));
    }
    for mode in ["constant", "reflect", "edge"] {
        let model = images(17).integers("pads", &[0, 0, 1, 2, 0, 0, 2, 0]).node_with(
            "Pad",
            "z pads",
            "y",
            &[("mode", Text(mode))],
        );
        check(mode, &model.flat("y"));
    }
    let model = scaled(17).integers("pads", &[0, 0, 1, 0, 0, 0]).floats("value", &[], vec![0.5]);
    check("Pad by a value", &model.node("Pad", "z pads value", "y").flat("y"));
    let old = images(9).node_with("Pad", "z", "y", &[("pads", Ints(&[0, 0, 0, 1, 0, 0, 0, 1])), ("value", Float(0.5))]);
    check("Pad by attributes", &old.flat("y"));
    let model =
        scaled(17).parameter("v", &[1, 3]).integers("s", &[2, 3]).node("Expand", "v s", "e").node("Mul", "z e", "y");
    check("Expand", &model.flat("y"));
    let model = scaled(17).integers("t", &[1, 2, 3]).node("Tile", "z t", "y");
    check("Tile", &model.flat("y"));
    for mode in ["DCR", "CRD"] {
        let attributes = [("blocksize", Int(2)), ("mode", Text(mode))];
        check(mode, &images(17).node_with("DepthToSpace", "z", "y", &attributes).flat("y"));
    }
    let model = Builder::new(17, &[2, 4, 6]).parameter("w", &[2, 1, 1]).node("Mul", "x w", "z");
    check("SpaceToDepth", &model.node_with("SpaceToDepth", "z", "y", &[("blocksize", Int(2))]).flat("y"));
}

pub(super) fn resizing(check: Check<'_>) {
    let resize = |attributes: &[(&str, Attribute)]| {
        let model = images(17).floats("scales", &[4], vec![1.0, 1.0, 2.0, 2.0]);
        model.node_with("Resize", "z - scales", "y", attributes).flat("y")
    };
    for (mode, transformation) in [
        ("nearest", "asymmetric"),
        ("nearest", "half_pixel"),
        ("linear", "half_pixel"),
        ("linear", "pytorch_half_pixel"),
        ("linear", "align_corners"),
        ("linear", "asymmetric"),
    ] {
        let attributes = [
            ("mode", Text(mode)),
            ("coordinate_transformation_mode", Text(transformation)),
            ("nearest_mode", Text("floor")),
        ];
        check(&format!("{mode} {transformation}"), &resize(&attributes));
    }
}

pub(super) fn transposed_convolutions(check: Check<'_>) {
    let start = |groups: i64| images(17).parameter("k", &[4, 6 / groups / 2, 3, 2]).parameter("b", &[3]);
    let cases: [(&str, &[(&str, Attribute)]); 5] = [
        ("plain", &[]),
        ("strides", &[("strides", Ints(&[2, 3]))]),
        ("pads", &[("strides", Ints(&[2, 2])), ("pads", Ints(&[1, 1, 1, 1]))]),
        ("uneven pads", &[("strides", Ints(&[2, 2])), ("pads", Ints(&[0, 1, 1, 0]))]),
        ("more", &[("strides", Ints(&[2, 2])), ("pads", Ints(&[1, 0, 1, 0])), ("output_padding", Ints(&[1, 1]))]),
    ];
    for (case, attributes) in cases {
        check(case, &start(1).node_with("ConvTranspose", "z k b", "y", attributes).flat("y"));
    }
    let model = images(17).parameter("k", &[4, 1, 2, 2]).node_with("ConvTranspose", "z k", "y", &[("group", Int(2))]);
    check("groups", &model.flat("y"));
    let signal = Builder::new(17, &[2, 5]).parameter("w", &[2, 1]).node("Mul", "x w", "z").parameter("k", &[2, 3, 3]);
    check("1-D", &signal.node_with("ConvTranspose", "z k", "y", &[("strides", Ints(&[2]))]).flat("y"));
}

pub(super) fn pools_of_every_padding(check: Check<'_>) {
    let kernel = || ("kernel_shape", Ints(&[3, 2]));
    for operator in ["MaxPool", "AveragePool"] {
        let cases: [&[(&str, Attribute)]; 4] = [
            &[kernel(), ("pads", Ints(&[0, 1, 2, 0]))],
            &[kernel(), ("pads", Ints(&[2, 0, 0, 1])), ("strides", Ints(&[2, 3]))],
            &[kernel(), ("auto_pad", Text("SAME_UPPER")), ("strides", Ints(&[2, 2]))],
            &[kernel(), ("auto_pad", Text("SAME_LOWER")), ("strides", Ints(&[2, 2]))],
        ];
        for attributes in cases {
            check(operator, &images(17).node_with(operator, "z", "y", attributes).flat("y"));
        }
        let signal = Builder::new(17, &[2, 7]).parameter("w", &[2, 1]).node("Mul", "x w", "z");
        let attributes = [("kernel_shape", Ints(&[3])), ("strides", Ints(&[2])), ("pads", Ints(&[1, 0]))];
        check(operator, &signal.node_with(operator, "z", "y", &attributes).flat("y"));
    }
    let counted = [kernel(), ("pads", Ints(&[1, 1, 0, 0])), ("count_include_pad", Int(1))];
    check("AveragePool counting uneven pads", &images(17).node_with("AveragePool", "z", "y", &counted).flat("y"));
    check("GlobalMaxPool", &images(17).node("GlobalMaxPool", "z", "y").flat("y"));
}

pub(super) fn layered_normalizations(check: Check<'_>) {
    let start = || images(18).parameter("v", &[4, 5, 6]).node("Mul", "z v", "a");
    let layer = |axis: i64, shape: &[i64]| {
        let model = start().parameter("scale", shape).parameter("bias", shape);
        model
            .node_with("LayerNormalization", "a scale bias", "y", &[("axis", Int(axis)), ("epsilon", Float(1e-3))])
            .flat("y")
    };
    check("LayerNormalization", &layer(-1, &[6]));
    check("LayerNormalization over two axes", &layer(2, &[5, 6]));
    let model = start().parameter("scale", &[6]).node("LayerNormalization", "a scale", "y");
    check("LayerNormalization without bias", &model.flat("y"));
    let model = start().parameter("scale", &[4]).parameter("bias", &[4]);
    check("InstanceNormalization", &model.node("InstanceNormalization", "a scale bias", "y").flat("y"));
    for (opset, count) in [(18, 2), (21, 4)] {
        let model = images(opset).parameter("v", &[4, 5, 6]).node("Mul", "z v", "a");
        let model = model.parameter("scale", &[count]).parameter("bias", &[count]);
        let model = model.node_with("GroupNormalization", "a scale bias", "y", &[("num_groups", Int(2))]);
        check(&format!("GroupNormalization {opset}"), &model.flat("y"));
    }
}

pub(super) fn reductions_of_every_kind(check: Check<'_>) {
    for operator in ["ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"] {
        for keep in [0, 1] {
            let model = images(18).parameter("v", &[4, 5, 6]).node("Mul", "z v", "a").integers("axes", &[1, -1]);
            let model = model.node_with(operator, "a axes", "y", &[("keepdims", Int(keep))]);
            check(operator, &model.flat("y"));
        }
        let old = images(11).node_with(operator, "z", "y", &[("axes", Ints(&[2])), ("keepdims", Int(0))]);
        check(operator, &old.flat("y"));
    }
    let model = positive().node_with("ReduceLogSum", "s", "y", &[("axes", Ints(&[2]))]);
    check("ReduceLogSum", &model.flat("y"));
}

/// x [N, 4, 3] as a sequence, with weights and, as PyTorch's exporter writes them, initial states of every sample.
fn sequence(count: i64, gates: i64) -> Builder {
    Builder::new(17, &[4, 3])
        .node_with("Transpose", "x", "t", &[("perm", Ints(&[1, 0, 2]))])
        .parameter("w", &[count, gates * 2, 3])
        .parameter("r", &[count, gates * 2, 2])
        .parameter("h0", &[count, 1, 2])
        .parameter("c0", &[count, 1, 2])
        .integers("count", &[count])
        .integers("two", &[2])
        .node_with("Shape", "x", "batch", &[("start", Int(0)), ("end", Int(1))])
        .node_with("Concat", "count batch two", "states", &[("axis", Int(0))])
        .node("Expand", "h0 states", "h")
        .node("Expand", "c0 states", "c")
}

pub(super) fn recurrent_networks(check: Check<'_>) {
    for (cell, gates, states) in [("LSTM", 4, "h c"), ("GRU", 3, "h")] {
        for direction in ["forward", "bidirectional"] {
            let count = if direction == "bidirectional" { 2 } else { 1 };
            let mut attributes = vec![("hidden_size", Int(2)), ("direction", Text(direction))];
            if cell == "GRU" {
                attributes.push(("linear_before_reset", Int(1)));
            }
            let model = sequence(count, gates).parameter("b", &[count, gates * 4]);
            let model = model.node_with(cell, &format!("t w r b - {states}"), "all last", &attributes);
            let model = model.node_with("Transpose", "all", "y", &[("perm", Ints(&[2, 0, 1, 3]))]);
            check(&format!("{cell} {direction}"), &model.flat("y"));
        }
        let model = sequence(1, gates);
        let model = model.node_with(cell, &format!("t w r - - {states}"), "all last", &[("hidden_size", Int(2))]);
        let model = model.node_with("Transpose", "last", "y", &[("perm", Ints(&[1, 0, 2]))]);
        check(&format!("{cell} without bias, last state"), &model.flat("y"));
    }
    let usual = [("hidden_size", Int(2)), ("activations", Texts(&["Sigmoid", "Tanh"]))];
    let model = sequence(1, 3).parameter("b", &[1, 12]).node_with("GRU", "t w r b - h", "all", &usual);
    check("GRU, reset before", &model.node_with("Transpose", "all", "y", &[("perm", Ints(&[2, 0, 1, 3]))]).flat("y"));
}

pub(super) fn sums_of_products(check: Check<'_>) {
    for (equation, shape) in
        [("bij,jk->bik", &[3, 4][..]), ("bij,ij->bi", &[2, 3]), ("bij,ki->bkj", &[4, 2]), ("bij,kl->bijk", &[2, 2])]
    {
        let model = scaled(17).parameter("v", shape).node_with("Einsum", "z v", "y", &[("equation", Text(equation))]);
        check(equation, &model.flat("y"));
    }
    let model = scaled(17).node_with("Einsum", "z", "y", &[("equation", Text("bij->bj"))]);
    check("bij->bj", &model.model("y"));
}

pub(super) fn constants_from_shapes(check: Check<'_>) {
    // As an exporter writes `token.expand(batch, -1, -1)`.
    let model = scaled(17)
        .parameter("token", &[1, 1, 3])
        .integers_of("zero", &[], &[0])
        .integers("axis", &[0])
        .integers("rest", &[-1, -1])
        .integers("minus", &[-1])
        .integers("three", &[3])
        .node("Shape", "z", "shape")
        .node("Gather", "shape zero", "batch")
        .node("Unsqueeze", "batch axis", "first")
        .node_with("Concat", "first rest", "wanted", &[("axis", Int(0))])
        .node("ConstantOfShape", "three", "zeros")
        .node_with("Cast", "zeros", "izeros", &[("to", Int(7))])
        .integers("ones", &[1, 1, 1])
        .node("Equal", "wanted minus", "free")
        .node("Where", "free ones wanted", "target")
        .node("Add", "target izeros", "final")
        .node("Expand", "token final", "tokens")
        .node_with("Concat", "tokens z", "y", &[("axis", Int(1))]);
    check("a class token", &model.flat("y"));
    let model = scaled(17)
        .integers_of("start", &[], &[0])
        .integers_of("limit", &[], &[3])
        .integers_of("step", &[], &[1])
        .node("Range", "start limit step", "positions")
        .parameter("table", &[5, 3])
        .node("Gather", "table positions", "rows")
        .integers("axis", &[0])
        .integers("part", &[2])
        .integers("none", &[0])
        .node("Slice", "rows none part axis", "some")
        .node("Mul", "z some", "y");
    check("positions", &model.flat("y"));
    // As the new exporter writes a view by strides.
    let model = scaled(17)
        .integers_of("zero", &[], &[0])
        .integers_of("one", &[], &[1])
        .integers_of("stride", &[], &[6])
        .integers("axes", &[1, 2])
        .integers_of("inner", &[1, 6, 1], &[5, 1, 2, 3, 4, 0])
        .integers("all", &[-1])
        .node("Shape", "z", "shape")
        .node("Gather", "shape zero", "batch")
        .node("Range", "zero batch one", "samples")
        .node("Mul", "samples stride", "starts")
        .node("Unsqueeze", "starts axes", "lifted")
        .node("Add", "lifted inner", "places")
        .node("Reshape", "z all", "numbers")
        .node("Gather", "numbers places", "y");
    check("indices over the batch", &model.flat("y"));
    let model = scaled(17)
        .node_with("Constant", "", "c", &[("value_floats", Numbers(&[0.5, -1.0, 2.0]))])
        .node("Mul", "z c", "y");
    check("Constant", &model.flat("y"));
    // As the old exporter writes the size of an attention head.
    let model = scaled(17)
        .integers_of("one", &[], &[1])
        .integers_of("two", &[], &[2])
        .node("Shape", "z", "shape")
        .node("Gather", "shape two", "three")
        .node("Mod", "three two", "rest")
        .node("Sub", "three rest", "even")
        .node("Add", "even one", "width")
        .integers("axis", &[0])
        .integers("open", &[-1])
        .node("Unsqueeze", "width axis", "last")
        .node_with("Concat", "open last", "target", &[("axis", Int(0))])
        .node("Reshape", "z target", "rows")
        .parameter("v", &[3])
        .node("Mul", "rows v", "r")
        .integers("back", &[-1, 6])
        .node("Reshape", "r back", "y");
    check("Mod", &model.model("y"));
    let model =
        scaled(17).node("Size", "w", "n").node_with("Cast", "n", "f", &[("to", Int(1))]).node("Div", "z f", "y");
    check("Size", &model.flat("y"));
}
