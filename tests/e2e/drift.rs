//! The requests of a fleet change: nodes notice, a task that waits for it trains, and the next versions know the new inputs.
//! How early drift is seen, and that nothing else is taken for it, is tested in the node.

use fedge_proto::feedback::class_label::Value;
use fedge_proto::feedback::feedback_client::FeedbackClient;
use fedge_proto::feedback::{ClassLabel, LabelRequest};
use fedge_proto::identity::{IdentityDirectory, Role, SharedIdentity};
use fedge_proto::inference::ModelInferRequest;
use fedge_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use fedge_proto::inference::infer_parameter::ParameterChoice;
use fedge_proto::inference::model_infer_request::InferInputTensor;
use fedge_proto::tls;
use tonic::transport::Channel;

use crate::harness::{Coordinator, Node, digits, every, succeed, wait_for};

/// A round now and then: the world decides when.
const TASK: &str = "model = \"digits\"\n[rounds]\ncount = 12\nmin_nodes = 2\nevaluate_every = 0\n\
    start = \"drift\"\ndrift_nodes = 2\ndrift_rounds = 12\n[training]\nepochs = 4\nlearning_rate = 0.05\n";

/// A digit as people send it, and what it shows.
#[derive(Clone)]
struct Digit {
    pixels: Vec<f32>,
    label: u32,
}

impl Digit {
    fn of(row: &str) -> Digit {
        let mut numbers: Vec<f32> = row.split(',').map(|number| number.parse().expect("a number")).collect();
        let label = numbers.pop().expect("a label") as u32;
        Digit { pixels: numbers, label }
    }

    /// White where it was black.
    fn inverted(&self) -> Digit {
        Digit { pixels: self.pixels.iter().map(|pixel| 16.0 - pixel).collect(), label: self.label }
    }
}

/// Asks one node.
struct Asker {
    inference: GrpcInferenceServiceClient<Channel>,
    feedback: FeedbackClient<Channel>,
}

impl Asker {
    async fn connect(node: &Node, identity: &SharedIdentity) -> Asker {
        let channel = tls::connect(&node.address, identity, Role::Node).await.expect("a connection");
        Asker { inference: GrpcInferenceServiceClient::new(channel.clone()), feedback: FeedbackClient::new(channel) }
    }

    /// The class that the node answers, and the id by which a label may come.
    async fn ask(&mut self, digit: &Digit) -> (u32, Option<String>) {
        let raw: Vec<u8> = digit.pixels.iter().flat_map(|pixel| pixel.to_le_bytes()).collect();
        let input = InferInputTensor {
            name: "pixels".into(),
            datatype: "FP32".into(),
            shape: vec![1, 1, 8, 8],
            ..InferInputTensor::default()
        };
        let request = ModelInferRequest {
            model_name: "digits".into(),
            inputs: vec![input],
            raw_input_contents: vec![raw.into()],
            ..ModelInferRequest::default()
        };
        let reply = self.inference.model_infer(request).await.expect("an answer").into_inner();
        let scores: Vec<f32> =
            reply.raw_output_contents[0].as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let class = (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).expect("scores");
        let id = reply.parameters.get("fedge_sample_id").and_then(|id| id.parameter_choice.clone());
        let id = id.and_then(|id| if let ParameterChoice::StringParam(id) = id { Some(id) } else { None });
        (class as u32, id)
    }

    /// Asks, and tells the right answer.
    async fn teach(&mut self, digit: &Digit) {
        let (_, id) = self.ask(digit).await;
        let Some(sample_id) = id else { return };
        let label = Some(ClassLabel { value: Some(Value::Index(digit.label)) });
        self.feedback.label(LabelRequest { sample_id, label }).await.expect("a label is taken");
    }

    async fn accuracy(&mut self, digits: &[Digit]) -> f64 {
        let mut correct = 0;
        for digit in digits {
            correct += u32::from(self.ask(digit).await.0 == digit.label);
        }
        f64::from(correct) / digits.len() as f64
    }
}

#[test]
fn a_fleet_whose_inputs_are_inverted_recovers_by_the_rounds_that_its_drift_asked_for() {
    let coordinator = Coordinator::start();
    coordinator.publish_digits();
    let rows = digits();
    let nodes: Vec<Node> =
        (0..2).map(|i| Node::start(&coordinator, &format!("node-{i}"), &every(&rows, 4, i))).collect();
    let first = coordinator.create_task(
        "model = \"digits\"\n[rounds]\ncount = 4\nmin_nodes = 2\n[training]\nepochs = 4\nlearning_rate = 0.05\n",
    );
    assert_eq!(coordinator.wait_for_end(&first)["state"], "finished");
    nodes.iter().for_each(|node| drop(node.wait_until_serving(5)));
    // What clients ask about, and what is only asked at the end, are no node's own samples.
    let asked: Vec<Digit> = every(&rows, 4, 2).iter().map(|row| Digit::of(row)).collect();
    let unseen: Vec<Digit> = every(&rows, 4, 3).iter().take(200).map(|row| Digit::of(row)).collect();
    let inverted: Vec<Digit> = unseen.iter().map(Digit::inverted).collect();

    // A thread of its own answers the pings of nodes while the test waits.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let identity = IdentityDirectory::new(coordinator.enrol("client", "client")).load().expect("an identity");
    let identity = SharedIdentity::new(identity);
    let mut askers: Vec<Asker> = nodes.iter().map(|node| runtime.block_on(Asker::connect(node, &identity))).collect();

    // Usual requests: the nodes learn what is usual, and the task waits.
    let standing = coordinator.create_task(TASK);
    runtime.block_on(async {
        for digit in asked.iter().cycle().take(520) {
            for asker in &mut askers {
                asker.ask(digit).await;
            }
        }
    });
    let alarm = |node: &Node| node.status()["status"]["serving"][0]["drift"].as_str().unwrap_or_default().to_owned();
    for node in &nodes {
        // Longer than a heartbeat: what was seen is told by now.
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert_eq!(alarm(node), "", "nothing has changed");
    }
    let task = coordinator.task(&standing);
    assert_eq!(task["rounds"].as_array().map(Vec::len), Some(0), "{task}");
    assert!(task["status"].as_str().is_some_and(|text| text.contains("waits for drift")), "{task}");

    // The cameras are turned round: at first nearly all answers are wrong.
    let shifted = asked.iter().cycle().skip(520).take(300).map(Digit::inverted);
    // While the task is paused no round begins, however many nodes report drift, and the drift is not forgotten: so all labels
    // have come by the first one.
    succeed(&mut coordinator.as_operator(&["task", "pause", &standing]));
    let before = runtime.block_on(askers[0].accuracy(&inverted[..30]));
    runtime.block_on(async {
        for digit in shifted {
            for asker in &mut askers {
                asker.teach(&digit).await;
            }
        }
    });
    for node in &nodes {
        wait_for("an alarm", || (!alarm(node).is_empty()).then_some(()));
        assert!(node.log().contains("what the model is asked has changed"), "{}", node.log());
    }
    assert_eq!(coordinator.task(&standing)["rounds"].as_array().map(Vec::len), Some(0));
    succeed(&mut coordinator.as_operator(&["task", "resume", &standing]));
    let task = coordinator.wait_for_end(&standing);
    assert_eq!((&task["state"], &task["newest_version"]), (&"finished".into(), &17.into()), "{task}");
    for (node, asker) in nodes.iter().zip(&mut askers) {
        node.wait_until_serving(17);
        let (after, usual) = (runtime.block_on(asker.accuracy(&inverted)), runtime.block_on(asker.accuracy(&unseen)));
        println!("inverted {before:.3} before, {after:.3} after; usual {usual:.3}");
        assert!(before < 0.5 && after >= 0.85, "inverted: {before} before, {after} after, {}", node.log());
        assert!(usual >= 0.85, "what was known is still known: {usual}");
    }
}
