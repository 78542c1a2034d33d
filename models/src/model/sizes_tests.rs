//! Small graphs whose constants would grow without bounds, and those of exporters, which do not.
//! Sizes that follow from computed shapes are tested in `growth`'s users.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::testing::{bytes, floats, graph, int, integers, ints, node};
use crate::{Model, pb};

fn refused(nodes: Vec<pb::NodeProto>, initializers: Vec<pb::TensorProto>) -> String {
    Model::from_bytes(bytes(graph(&[-1, 1, 4, 4], &[-1, 1, 4, 4], nodes, initializers))).unwrap_err().to_string()
}

#[test]
fn doubling_constants_are_refused_before_they_fill_the_memory() {
    let mut nodes = Vec::new();
    for step in 0..40 {
        let (from, to) = (format!("c{step}"), format!("c{}", step + 1));
        nodes.push(int(node("Concat", &[&from, &from], &[&to]), "axis", 0));
    }
    nodes.push(node("Add", &["x", "c40"], &["y"]));
    let error = refused(nodes, vec![floats("c0", &[4], &[1.0; 4])]);
    assert!(error.contains("constants alone"), "{error}");
}

#[test]
fn an_outer_product_of_constants_is_bounded_and_a_plain_sum_is_not_refused() {
    let column = floats("column", &[20_000, 1], &[0.0; 20_000]);
    let row = floats("row", &[1, 20_000], &[0.0; 20_000]);
    let nodes = vec![node("Mul", &["column", "row"], &["big"]), node("Add", &["x", "big"], &["y"])];
    assert!(refused(nodes, vec![column, row]).contains("400000000"));
    let pair = |name| floats(name, &[100, 200], &[0.0; 20_000]);
    let nodes = vec![node("Mul", &["a", "b"], &["c"]), node("Relu", &["x"], &["y"])];
    Model::from_bytes(bytes(graph(&[-1, 4], &[-1, 4], nodes, vec![pair("a"), pair("b")]))).unwrap();
}

#[test]
fn constants_that_short_nodes_ask_for_are_bounded() {
    let fill = vec![node("ConstantOfShape", &["s"], &["c"]), node("Add", &["x", "c"], &["y"])];
    assert!(refused(fill, vec![integers("s", &[1 << 20, 1 << 20])]).contains("constants alone"));
    let expand = vec![node("Expand", &["v", "s"], &["c"]), node("Add", &["x", "c"], &["y"])];
    let column = || floats("v", &[20_000, 1], &[0.0; 20_000]);
    assert!(refused(expand, vec![integers("s", &[20_000, 20_000]), column()]).contains("400000000"));
    let tile = vec![node("Tile", &["v", "s"], &["c"]), node("Add", &["x", "c"], &["y"])];
    assert!(refused(tile, vec![integers("s", &[20_000, 20_000]), column()]).contains("constants alone"));
    let range = vec![node("Range", &["a", "b", "c"], &["r"]), node("Add", &["x", "r"], &["y"])];
    let ends = vec![integers("a", &[0]), integers("b", &[1 << 40]), integers("c", &[1])];
    assert!(refused(range, ends).contains("constants alone"));
    let negative = vec![node("ConstantOfShape", &["s"], &["c"]), node("Add", &["x", "c"], &["y"])];
    assert!(refused(negative, vec![integers("s", &[-1])]).contains("negative"));
}

#[test]
fn a_transpose_names_each_axis_once() {
    let transpose = |perm: &[i64]| vec![ints(node("Transpose", &["x"], &["y"]), "perm", perm)];
    for perm in [&[0, 0, 2, 3][..], &[0, 1, 2, 4], &[0, 1, 2, -1], &[1]] {
        assert!(refused(transpose(perm), vec![]).contains("each axis once"), "{perm:?}");
    }
    Model::from_bytes(bytes(graph(&[-1, 2, 4, 4], &[-1, 4, 4, 2], transpose(&[0, 2, 3, 1]), vec![]))).unwrap();
    let reversed = vec![node("Transpose", &["x"], &["y"])];
    Model::from_bytes(bytes(graph(&[-1, 4], &[4, -1], reversed, vec![]))).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn the_shape_arithmetic_of_exporters_stays_a_list() {
    let nodes = vec![
        node("Shape", &["x"], &["s"]),
        node("Gather", &["s", "first"], &["n"]),
        node("Unsqueeze", &["n", "zero"], &["u"]),
        int(node("Concat", &["u", "minus", "minus"], &["target"]), "axis", 0),
        node("Shape", &["target"], &["len"]),
        node("ConstantOfShape", &["len"], &["ones"]),
        node("Equal", &["target", "ones"], &["same"]),
        node("Where", &["same", "ones", "target"], &["final"]),
        node("Expand", &["w", "final"], &["e"]),
        int(node("Concat", &["x", "e"], &["y"]), "axis", 1),
    ];
    let mut first = integers("first", &[0]);
    first.dims.clear();
    let initializers =
        vec![first, integers("zero", &[0]), integers("minus", &[-1]), floats("w", &[1, 1, 4], &[0.0; 4])];
    Model::from_bytes(bytes(graph(&[-1, 4], &[-1, 4], nodes, initializers))).unwrap();
}

/// "c" of 4,096 zeros as a column or, with one more Unsqueeze, deeper; "l" of as many as a list.
fn column_and_list() -> Vec<pb::NodeProto> {
    vec![
        node("ConstantOfShape", &["n"], &["l"]),
        node("Shape", &["l"], &["s"]),
        node("Unsqueeze", &["s", "zero"], &["u"]),
        int(node("Concat", &["u"; 4096], &["c"]), "axis", 0),
    ]
}

#[test]
fn a_list_that_is_unsqueezed_is_a_list_no_more() {
    // A column of 4,096 and a list of 4,096 broadcast to 2^24; three times that is more than may be folded.
    let initializers = || vec![integers("zero", &[0]), integers("n", &[4096])];
    let mut nodes = column_and_list();
    nodes.push(node("Add", &["c", "l"], &["square"]));
    nodes.push(int(node("Concat", &["square"; 8], &["y"]), "axis", 0));
    assert!(refused(nodes, initializers()).contains("constants alone"));
    // Nor is what is gathered from it.
    let mut nodes = column_and_list();
    nodes.push(node("Gather", &["c", "l"], &["g"]));
    nodes.push(node("Gather", &["l", "g"], &["h"]));
    nodes.push(node("Add", &["h", "l"], &["square"]));
    nodes.push(int(node("Concat", &["square"; 8], &["y"]), "axis", 0));
    assert!(refused(nodes, initializers()).contains("constants alone"));
}

#[test]
fn a_product_of_integers_is_as_large_as_one_of_floats() {
    for operator in ["MatMul", "MatMulInteger"] {
        let nodes = vec![node(operator, &["v", "h"], &["c"]), node("Add", &["x", "c"], &["y"])];
        let zeros = |name, dims: [i64; 2]| {
            let mut tensor = floats(name, &dims, &[]);
            tensor.data_type = pb::tensor_proto::DataType::Uint8 as i32;
            tensor.raw_data = vec![0; 10_000];
            tensor
        };
        let error = refused(nodes, vec![zeros("v", [10_000, 1]), zeros("h", [1, 10_000])]);
        assert!(error.contains("100000000 elements"), "{error}");
    }
}

#[test]
fn operators_outside_of_the_catalogue_do_not_grow_constants_either() {
    let random = ints(node("RandomNormal", &[], &["c"]), "shape", &[1 << 20, 1 << 20]);
    let one_hot = node("OneHot", &["indices", "depth", "values"], &["c"]);
    for made in [random, one_hot] {
        let nodes = vec![made, node("Add", &["x", "c"], &["y"])];
        let initializers =
            vec![integers("indices", &[0; 64]), integers("depth", &[1 << 40]), floats("values", &[2], &[0.0, 1.0])];
        let file = bytes(graph(&[-1, 1, 4, 4], &[-1, 1, 4, 4], nodes, initializers));
        let error = crate::Interface::from_bytes(&file).unwrap_err().to_string();
        assert!(error.contains("constants alone"), "{error}");
    }
}

#[test]
fn lists_of_shapes_are_looked_up_in_no_time() {
    let count = 30_000;
    let name = |index: usize| format!("l{index}");
    let initializers = (0..count).map(|index| integers(&name(index), &[1, 4, 4, 4])).collect();
    let mut nodes: Vec<pb::NodeProto> =
        (0..count).map(|index| node("Reshape", &["x", &name(count - 1 - index)], &[&format!("r{index}")])).collect();
    nodes.push(node("Identity", &["x"], &["y"]));
    let start = std::time::Instant::now();
    Model::from_bytes(bytes(graph(&[-1, 1, 4, 4], &[-1, 1, 4, 4], nodes, initializers))).unwrap();
    assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
}

#[test]
fn enormous_windows_and_computed_pads_are_refused() {
    let conv = ints(node("Conv", &["x", "w"], &["y"]), "pads", &[1 << 40, 0, 0, 0]);
    assert!(refused(vec![conv], vec![floats("w", &[1, 1, 1, 1], &[1.0])]).contains("pads"));
    assert!(refused(vec![node("Pad", &["x", "x"], &["y"])], vec![]).contains("pads"));
    let pads = integers("p", &[0, 0, 0, 0, 0, 0, 0, 1 << 40]);
    assert!(refused(vec![node("Pad", &["x", "p"], &["y"])], vec![pads]).contains("1099511627776"));
}

#[test]
fn a_sum_of_computed_indices_is_left_to_the_look_at_its_true_size() {
    let sum = |inner: i64| {
        let nodes = vec![
            node("Shape", &["x"], &["s"]),
            node("Gather", &["s", "zero"], &["n"]),
            node("Range", &["zero", "n", "one"], &["r"]),
            node("Unsqueeze", &["r", "axes"], &["u"]),
            node("Add", &["u", "inner"], &["places"]),
            node("Reshape", &["x", "all"], &["flat"]),
            node("Gather", &["flat", "places"], &["y"]),
        ];
        let number = |name, value| pb::TensorProto { dims: vec![], ..integers(name, &[value]) };
        let mut places = integers("inner", &vec![0; inner as usize]);
        places.dims = vec![1, inner];
        let rest = [integers("axes", &[1]), integers("all", &[-1]), places];
        let initializers = [number("zero", 0), number("one", 1)].into_iter().chain(rest).collect();
        super::computed(&graph(&[-1, 1, 4, 4], &[-1, inner], nodes, initializers))
    };
    // The Range; with more elements than may be made of constants alone, the sum too.
    assert_eq!(sum(16).unwrap(), [2].into());
    assert_eq!(sum(768).unwrap(), [2, 4].into());
}
