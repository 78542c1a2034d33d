//! `fedge infer`: asks a node about one sample; prints the class and its probability; sends the right label back.
//! The protocol's semantics are the node's; this is one of its clients.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use fedge_models::ElementType;
use fedge_node::samples::file;
use fedge_proto::feedback::feedback_client::FeedbackClient;
use fedge_proto::feedback::{ClassLabel, LabelRequest, class_label};
use fedge_proto::identity::{IdentityDirectory, Role};
use fedge_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use fedge_proto::inference::model_infer_request::InferInputTensor;
use fedge_proto::inference::model_metadata_response::TensorMetadata;
use fedge_proto::inference::{
    InferParameter, ModelInferRequest, ModelInferResponse, ModelMetadataRequest, infer_parameter::ParameterChoice,
};
use fedge_proto::tls;
use tonic::transport::Channel;

use crate::operator::{current_identity, refused};
use crate::{output, process, softmax};

/// Flags of `infer`.
#[derive(Debug, Args)]
pub(crate) struct Infer {
    /// The node's inference port, host:port
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8001", env = "FEDGE_NODE")]
    node: String,
    /// Name of the model
    #[arg(long)]
    model: String,
    /// Take the sample from this .csv, .parquet, .npz, .npy, .json or IDX file, or from this .png or .jpg picture
    #[arg(long, value_name = "FILE", required_unless_present = "values", conflicts_with = "values")]
    file: Option<PathBuf>,
    /// Which row of the file, from 1 (a header does not count)
    #[arg(long, value_name = "N", default_value_t = 1)]
    row: usize,
    /// The sample's raw values, comma-separated
    #[arg(long, value_name = "V,V,V", value_delimiter = ',', allow_negative_numbers = true)]
    values: Vec<f32>,
    /// Send this label (a class name or index) back as the right answer: it becomes a training sample of the node
    #[arg(long)]
    label: Option<String>,
    /// Identity directory of an operator or a client
    #[arg(long, value_name = "DIR", default_value = "fedge-coordinator/operator", env = "FEDGE_IDENTITY")]
    identity: PathBuf,
    /// Call a node that serves without TLS on loopback; no identity is shown then
    #[arg(long)]
    plaintext: bool,
    /// Most classes to print
    #[arg(long, value_name = "K", default_value_t = 3)]
    top: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Infer {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        process::log("warn");
        let channel = if self.plaintext {
            tls::connect_plaintext(&self.node).await?
        } else {
            let identity = current_identity(&IdentityDirectory::new(&self.identity)).await?;
            tls::connect(&self.node, &identity, Role::Node).await?
        };
        let mut client = GrpcInferenceServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        let request = ModelMetadataRequest { name: self.model.clone(), version: String::new() };
        let metadata = client.model_metadata(request).await.map_err(refused)?.into_inner();
        let input = metadata.inputs.first().context("the model has no input")?;
        let labels: Vec<String> =
            metadata.properties.get("fedge_labels").and_then(|l| serde_json::from_str(l).ok()).unwrap_or_default();
        let sample = self.sample(input)?;
        let reply = client.model_infer(request_for(&self.model, input, &sample)?).await.map_err(refused)?.into_inner();
        let answer = Answer::of(&reply, &labels, self.top)?;
        let stored = match &self.label {
            Some(label) => Some(send_label(channel, &reply, label, &labels).await?),
            None => None,
        };
        if self.json {
            return output::json(&serde_json::json!({
                "model": reply.model_name, "version": reply.model_version, "class": answer.classes.first().map(|c| c.0),
                "label": answer.classes.first().map(|c| &c.1), "probability": answer.classes.first().map(|c| c.2),
                "classes": answer.classes.iter().map(|(index, label, p)| {
                    serde_json::json!({ "class": index, "label": label, "probability": p })
                }).collect::<Vec<_>>(),
                "precision": answer.precision, "sample_id": answer.sample_id, "stored_label": stored,
            }));
        }
        let mut table = output::table(&["class", "probability"], &[1]);
        for (_, label, probability) in &answer.classes {
            table.add_row([label.clone(), format!("{:.1} %", probability * 100.0)]);
        }
        println!("{table}");
        println!("{} version {}, {}", reply.model_name, reply.model_version, answer.precision);
        match (stored, &answer.sample_id) {
            (Some(index), _) => println!("Label {index} is stored with this sample on the node."),
            (None, Some(id)) => println!("sample {id} (--label sends the right class back)"),
            (None, None) => {}
        }
        Ok(())
    }

    fn sample(&self, input: &TensorMetadata) -> anyhow::Result<Vec<f32>> {
        let shape: Vec<usize> = input
            .shape
            .iter()
            .skip(1)
            .map(|&dim| usize::try_from(dim))
            .collect::<Result<_, _>>()
            .context("the model's input has a dimension of unknown size")?;
        let len: usize = shape.iter().product();
        let Some(path) = &self.file else {
            if self.values.len() != len {
                bail!("--values has {} values, the model takes {len}", self.values.len());
            }
            return Ok(self.values.clone());
        };
        let rows = file::read_inputs(path, &shape)?;
        let row = self.row.checked_sub(1).and_then(|index| rows.rows().nth(index));
        match row {
            Some(row) => Ok(row.to_vec()),
            None => bail!("{} has {} rows, there is no row {}", path.display(), rows.len(), self.row),
        }
    }
}

/// A request with one sample.
fn request_for(model: &str, input: &TensorMetadata, sample: &[f32]) -> anyhow::Result<ModelInferRequest> {
    let shape = std::iter::once(1).chain(input.shape.iter().skip(1).copied()).collect();
    let raw = raw(&input.datatype, sample)?;
    Ok(ModelInferRequest {
        model_name: model.to_owned(),
        inputs: vec![InferInputTensor {
            name: input.name.clone(),
            datatype: input.datatype.clone(),
            shape,
            ..InferInputTensor::default()
        }],
        raw_input_contents: vec![raw.into()],
        ..ModelInferRequest::default()
    })
}

/// The values in the model's own type, little-endian.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the type was asked whether it holds them")]
fn raw(datatype: &str, sample: &[f32]) -> anyhow::Result<Vec<u8>> {
    fn each<const SIZE: usize>(sample: &[f32], bytes: impl Fn(f32) -> [u8; SIZE]) -> Vec<u8> {
        sample.iter().flat_map(|&value| bytes(value)).collect()
    }
    let element = ElementType::from_name(datatype).filter(|element| element.is_held_as_float());
    let element = element.with_context(|| format!("the model takes {datatype}, which is not written here"))?;
    if let Some(value) = sample.iter().find(|value| !element.holds(**value)) {
        bail!("the model takes {datatype}, of which whole numbers below 16777216 are written here; {value} is none");
    }
    Ok(match element {
        ElementType::Uint8 => each(sample, |value| (value as u8).to_le_bytes()),
        ElementType::Int8 => each(sample, |value| (value as i8).to_le_bytes()),
        ElementType::Uint16 => each(sample, |value| (value as u16).to_le_bytes()),
        ElementType::Int16 => each(sample, |value| (value as i16).to_le_bytes()),
        ElementType::Uint32 => each(sample, |value| (value as u32).to_le_bytes()),
        ElementType::Int32 => each(sample, |value| (value as i32).to_le_bytes()),
        ElementType::Uint64 => each(sample, |value| (value as u64).to_le_bytes()),
        ElementType::Int64 => each(sample, |value| (value as i64).to_le_bytes()),
        _ => each(sample, f32::to_le_bytes),
    })
}

/// A reply as people read it.
struct Answer {
    /// Index, label, probability; the likeliest first.
    classes: Vec<(usize, String, f64)>,
    precision: String,
    sample_id: Option<String>,
}

impl Answer {
    fn of(reply: &ModelInferResponse, labels: &[String], top: usize) -> anyhow::Result<Answer> {
        let raw = reply.raw_output_contents.first().context("the reply carries no output")?;
        let (values, _) = raw.as_chunks::<4>();
        let values: Vec<f32> = values.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let mut classes: Vec<(usize, String, f64)> = softmax::probabilities(&values)
            .into_iter()
            .enumerate()
            .map(|(index, p)| (index, labels.get(index).cloned().unwrap_or_else(|| index.to_string()), p))
            .collect();
        classes.sort_by(|a, b| b.2.total_cmp(&a.2));
        classes.truncate(top.max(1));
        let precision = text(reply, "fedge_precision").unwrap_or_else(|| "unknown precision".into());
        Ok(Answer { classes, precision, sample_id: text(reply, "fedge_sample_id") })
    }
}

fn text(reply: &ModelInferResponse, key: &str) -> Option<String> {
    match reply.parameters.get(key) {
        Some(InferParameter { parameter_choice: Some(ParameterChoice::StringParam(text)) }) => Some(text.clone()),
        _ => None,
    }
}

async fn send_label(
    channel: Channel,
    reply: &ModelInferResponse,
    label: &str,
    labels: &[String],
) -> anyhow::Result<u32> {
    let sample_id = text(reply, "fedge_sample_id").context(
        "the node kept no sample of this request (inference.keep is below 1, or its store is busy): no label was sent",
    )?;
    let value = match label.parse::<u32>() {
        Ok(index) if !labels.iter().any(|l| l == label) => class_label::Value::Index(index),
        _ => class_label::Value::Name(label.to_owned()),
    };
    let request = LabelRequest { sample_id, label: Some(ClassLabel { value: Some(value) }) };
    Ok(FeedbackClient::new(channel).label(request).await.map_err(refused)?.into_inner().index)
}
