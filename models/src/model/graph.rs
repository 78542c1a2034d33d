//! The graph as a whole: known operators, values defined once and before their use, one input, one output.
//! Single tensors are checked in `tensor`; which operators exist is `operators`.

use std::collections::HashSet;

use super::signature::{self, TensorSignature};
use crate::error::shorten;
use crate::{ModelError, operators, pb};

/// Most nodes of a graph.
const MAX_NODES: usize = 100_000;
/// Most inputs and outputs of all nodes together.
const MAX_EDGES: usize = 1_000_000;
/// Longest name of a value or node, in bytes.
const MAX_NAME_BYTES: usize = 4096;

/// Version of the default operator set; ONNX names its domain "" or "ai.onnx".
pub(crate) fn default_opset(model: &pb::ModelProto) -> Result<i64, ModelError> {
    let mut versions =
        model.opset_import.iter().filter(|set| matches!(set.domain.as_str(), "" | "ai.onnx")).map(|set| set.version);
    match (versions.next(), versions.next()) {
        (Some(version), None) if version >= operators::OLDEST_OPSET => Ok(version),
        (Some(version), None) => Err(ModelError::Unsupported {
            feature: format!("operator set {version}"),
            advice: format!("export the model with opset {} or newer (17 is a good choice)", operators::OLDEST_OPSET),
        }),
        (None, _) => Err(ModelError::graph("imports no default operator set; export the model again")),
        (Some(_), Some(_)) => Err(ModelError::graph("imports the default operator set twice; export the model again")),
    }
}

/// Checks the graph's structure and gives the signatures of its one input and one output.
pub(crate) fn check(graph: &pb::GraphProto, opset: i64) -> Result<(TensorSignature, TensorSignature), ModelError> {
    if graph.node.len() > MAX_NODES {
        return Err(ModelError::TooLarge {
            what: "the number of nodes".to_owned(),
            size: graph.node.len() as u64,
            limit: MAX_NODES as u64,
        });
    }
    let (input, mut defined) = define_sources(graph)?;
    let mut edges = 0usize;
    for node in &graph.node {
        edges += node.input.len() + node.output.len();
        if edges > MAX_EDGES {
            return Err(ModelError::node(node, format!("the graph has more than {MAX_EDGES} edges up to here")));
        }
        operators::check(node, opset)?;
        check_attributes(node)?;
        for name in node.input.iter().filter(|name| !name.is_empty()) {
            if !defined.contains(name.as_str()) {
                return Err(ModelError::node(
                    node,
                    format!(
                        "reads {:?}, which nothing before it defines: the graph has a cycle, is not sorted, or lacks a value; export it again",
                        shorten(name)
                    ),
                ));
            }
        }
        for name in node.output.iter().filter(|name| !name.is_empty()) {
            check_name(name).map_err(|problem| ModelError::node(node, problem))?;
            if !defined.insert(name) {
                return Err(ModelError::node(
                    node,
                    format!("defines {:?} a second time; each value is defined once", shorten(name)),
                ));
            }
        }
    }
    Ok((input, output(graph, &defined)?))
}

/// Defines initializers and graph inputs, and gives the signature of the one input that is no initializer.
fn define_sources(graph: &pb::GraphProto) -> Result<(TensorSignature, HashSet<&str>), ModelError> {
    let mut defined = HashSet::with_capacity(graph.initializer.len() + graph.node.len());
    for tensor in &graph.initializer {
        check_name(&tensor.name).map_err(ModelError::graph)?;
        if tensor.name.is_empty() || !defined.insert(tensor.name.as_str()) {
            return Err(ModelError::tensor(
                &tensor.name,
                "is defined twice or has no name; give each initializer its own name",
            ));
        }
    }
    // Before IR 4 every initializer was listed as an input too.
    let initializers = defined.clone();
    let mut free = Vec::new();
    for value in &graph.input {
        check_name(&value.name).map_err(ModelError::graph)?;
        if !initializers.contains(value.name.as_str()) {
            if value.name.is_empty() || !defined.insert(value.name.as_str()) {
                return Err(ModelError::graph(format!(
                    "lists the input {:?} twice or without a name",
                    shorten(&value.name)
                )));
            }
            free.push(value);
        }
    }
    match free.as_slice() {
        [value] => Ok((signature::read(value, "input")?, defined)),
        [] => Err(ModelError::graph("has no input; export it with one input whose first dimension is the batch")),
        several => Err(ModelError::graph(format!(
            "has {} inputs ({}); export it with one input whose first dimension is the batch",
            several.len(),
            names(several)
        ))),
    }
}

fn output(graph: &pb::GraphProto, defined: &HashSet<&str>) -> Result<TensorSignature, ModelError> {
    let [value] = graph.output.as_slice() else {
        let found = graph.output.iter().collect::<Vec<_>>();
        return Err(ModelError::graph(format!(
            "has {} outputs ({}); export it with one output",
            found.len(),
            names(&found)
        )));
    };
    if !defined.contains(value.name.as_str()) {
        return Err(ModelError::graph(format!("never defines its output {:?}; export it again", shorten(&value.name))));
    }
    if graph.initializer.iter().any(|tensor| tensor.name == value.name) {
        return Err(ModelError::graph(format!(
            "gives the initializer {:?} as its output, so it computes nothing",
            shorten(&value.name)
        )));
    }
    signature::read(value, "output")
}

fn check_attributes(node: &pb::NodeProto) -> Result<(), ModelError> {
    let mut names = HashSet::new();
    for attribute in &node.attribute {
        if !names.insert(attribute.name.as_str()) {
            return Err(ModelError::node(node, format!("gives the attribute {:?} twice", shorten(&attribute.name))));
        }
        if !attribute.ref_attr_name.is_empty() {
            return Err(ModelError::node(
                node,
                "refers to an attribute of a function, but functions are not supported; inline them",
            ));
        }
        for tensor in attribute.t.iter().chain(&attribute.tensors) {
            super::tensor::check(tensor).map_err(|error| ModelError::node(node, error.to_string()))?;
        }
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), String> {
    if name.len() > MAX_NAME_BYTES {
        return Err(format!("names the value {:?} with more than {MAX_NAME_BYTES} bytes", shorten(name)));
    }
    Ok(())
}

fn names(values: &[&pb::ValueInfoProto]) -> String {
    let shown: Vec<String> = values.iter().take(8).map(|value| format!("{:?}", shorten(&value.name))).collect();
    shown.join(", ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use crate::testing::{bytes, floats, graph, int, linear, model, node, text, value};
    use crate::{Model, pb};
    use prost::Message;

    fn refused(graph: pb::GraphProto) -> String {
        Model::from_bytes(bytes(graph)).unwrap_err().to_string()
    }

    #[test]
    fn a_sound_graph_gives_its_signatures() {
        let model = Model::from_bytes(bytes(linear())).unwrap();
        assert_eq!(
            (model.input().dims.as_slice(), model.output().dims.as_slice()),
            (&[None, Some(2)][..], &[None, Some(3)][..])
        );
        assert_eq!((model.input().sample_len(), model.input().fixed_batch()), (2, None));
    }

    #[test]
    fn initializers_listed_as_inputs_are_not_inputs() {
        let mut graph = linear();
        graph.input.insert(0, value("w", &[2, 3]));
        assert_eq!(Model::from_bytes(bytes(graph)).unwrap().input().name, "x");
    }

    #[test]
    fn a_cycle_a_use_before_its_definition_and_a_missing_value_are_refused() {
        let cycle =
            graph(&[-1, 2], &[-1, 2], vec![node("Add", &["x", "y"], &["h"]), node("Relu", &["h"], &["y"])], vec![]);
        assert!(refused(cycle).contains("cycle"));
        let mut missing = linear();
        missing.node[0].input[1] = "nowhere".to_owned();
        let error = refused(missing);
        assert!(error.contains("nowhere") && error.contains("the_Gemm"), "{error}");
    }

    #[test]
    fn a_value_or_initializer_defined_twice_is_refused() {
        let mut twice = linear();
        twice.node.push(node("Relu", &["x"], &["y"]));
        assert!(refused(twice).contains("second time"));
        let mut twice = linear();
        twice.initializer.push(floats("w", &[2, 3], &[0.0; 6]));
        assert!(refused(twice).contains("\"w\""));
        let mut shadow = linear();
        shadow.node.push(node("Relu", &["x"], &["w"]));
        assert!(refused(shadow).contains("second time"));
    }

    #[test]
    fn any_number_of_inputs_or_outputs_but_one_is_refused_by_name() {
        let mut two = linear();
        two.input.push(value("z", &[1]));
        let error = refused(two);
        assert!(error.contains("2 inputs") && error.contains("\"z\""), "{error}");
        let mut none = linear();
        none.input.clear();
        assert!(refused(none).contains("no input"));
        let mut outputs = linear();
        outputs.output.push(value("x", &[1]));
        assert!(refused(outputs).contains("2 outputs"));
        let mut nothing = linear();
        nothing.output[0].name = "q".to_owned();
        assert!(refused(nothing).contains("never defines"));
    }

    #[test]
    fn bad_input_dimensions_are_refused() {
        for (dims, word) in [
            (&[-1, -1][..], "dynamic"),
            (&[], "scalar"),
            (&[-1, 0], "at least 1"),
            (&[-1, 1 << 40], "more than"),
            (&[1, 1 << 40, 1 << 40], "more than"),
        ] {
            let mut graph = linear();
            graph.input[0] = value("x", dims);
            let error = refused(graph);
            assert!(error.contains(word), "{dims:?}: {error}");
        }
        let mut untyped = linear();
        untyped.input[0].r#type = None;
        assert!(refused(untyped).contains("not a tensor"));
    }

    #[test]
    fn unknown_foreign_and_hoarding_operators_are_refused_with_advice() {
        for (operator, word) in
            [("FancyNorm", "catalogue"), ("OneHot", "memory"), ("RandomNormal", "random"), ("Loop", "control flow")]
        {
            let mut graph = linear();
            graph.node[0].op_type = operator.to_owned();
            let error = refused(graph);
            assert!(error.contains(operator) && error.contains(word), "{error}");
        }
        let mut foreign = linear();
        foreign.node[0].domain = "com.example".to_owned();
        assert!(refused(foreign).contains("com.example"));
    }

    #[test]
    fn operator_sets_that_are_old_missing_or_double_are_refused() {
        let mut file = model(linear(), 8);
        let refused = |file: &pb::ModelProto| Model::from_bytes(file.encode_to_vec()).unwrap_err().to_string();
        assert!(refused(&file).contains("opset 9"));
        file.opset_import.push(file.opset_import[0].clone());
        assert!(refused(&file).contains("twice"));
        file.opset_import.clear();
        assert!(refused(&file).contains("no default operator set"));
        let mut graph = linear();
        graph.node[0].op_type = "Gelu".to_owned();
        assert!(refused(&model(graph, 19)).contains("operator set 20"));
    }

    #[test]
    fn a_recurrence_that_runs_backwards_alone_is_refused() {
        let mut graph = linear();
        graph.node[0].op_type = "LSTM".to_owned();
        graph.node[0].attribute.clear();
        graph.node[0] = text(graph.node[0].clone(), "direction", "reverse");
        assert!(refused(graph).contains("backwards"));
    }

    #[test]
    fn an_attribute_given_twice_is_refused() {
        let mut graph = linear();
        graph.node[0] = int(int(graph.node[0].clone(), "transB", 0), "transB", 1);
        assert!(refused(graph).contains("transB"));
    }
}
