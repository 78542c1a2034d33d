//! Answers, errors and descriptions as HTTP bodies: JSON, and behind it the bytes of the binary extension.
//! What models are and did is told by `describe`; here it becomes JSON with the protocol's names.

use fedge_proto::inference::model_config::SchedulingChoice;
use fedge_proto::inference::model_version_policy::PolicyChoice;
use fedge_proto::inference::{DataType, ModelConfig, ModelMetadataResponse, ModelStatistics, StatisticDuration};
use prost::bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Map, Value, json};

use super::super::answer::{Answer, OutputTensor, Parameter};

/// An answer's body, and the length of its JSON where bytes follow it.
pub(super) fn answer(answer: Answer, binary: impl Fn(&str) -> bool) -> (Bytes, Option<usize>) {
    let parameters: Map<String, Value> = answer
        .parameters()
        .into_iter()
        .map(|(name, value)| {
            let value = match value {
                Parameter::Text(text) => Value::from(text),
                Parameter::Integer(number) => Value::from(number),
            };
            (name.to_owned(), value)
        })
        .collect();
    let mut rest: Vec<Bytes> = Vec::new();
    let mut outputs = Vec::with_capacity(answer.outputs.len());
    for output in answer.outputs {
        let mut tensor = json!({ "name": output.name, "datatype": output.datatype, "shape": output.shape });
        if binary(&output.name) {
            tensor["parameters"] = json!({ "binary_data_size": output.data.len() });
            rest.push(output.data);
        } else {
            tensor["data"] = data(&output);
        }
        outputs.push(tensor);
    }
    let manifest = answer.serving.manifest();
    let mut body = json!({
        "model_name": manifest.name, "model_version": manifest.number.to_string(),
        "parameters": parameters, "outputs": outputs,
    });
    if !answer.id.is_empty() {
        body["id"] = answer.id.into();
    }
    let text = body.to_string();
    if rest.is_empty() {
        return (text.into(), None);
    }
    let mut body = BytesMut::with_capacity(text.len() + rest.iter().map(Bytes::len).sum::<usize>());
    body.put_slice(text.as_bytes());
    rest.into_iter().for_each(|bytes| body.put(bytes));
    (body.freeze(), Some(text.len()))
}

/// `{"error": "..."}`.
pub(super) fn error(message: &str) -> Bytes {
    json!({ "error": message }).to_string().into()
}

/// An output's values as a flat list. Numbers that JSON has not (NaN, infinity) become null.
fn data(output: &OutputTensor) -> Value {
    fn list<const N: usize, T: Into<Value>>(data: &[u8], from: impl Fn([u8; N]) -> T) -> Value {
        data.as_chunks().0.iter().map(|&chunk| from(chunk).into()).collect::<Vec<Value>>().into()
    }
    let data = &output.data[..];
    match output.datatype {
        "BOOL" => list(data, |[byte]| byte != 0),
        "INT8" => list(data, i8::from_le_bytes),
        "INT16" => list(data, i16::from_le_bytes),
        "INT32" => list(data, i32::from_le_bytes),
        "INT64" => list(data, i64::from_le_bytes),
        "UINT8" => list(data, u8::from_le_bytes),
        "UINT16" => list(data, u16::from_le_bytes),
        "UINT32" => list(data, u32::from_le_bytes),
        "UINT64" => list(data, u64::from_le_bytes),
        "FP16" => list(data, |chunk| shortest(half::f16::from_le_bytes(chunk).to_f32())),
        "BF16" => list(data, |chunk| shortest(half::bf16::from_le_bytes(chunk).to_f32())),
        "FP32" => list(data, |chunk| shortest(f32::from_le_bytes(chunk))),
        "FP64" => list(data, f64::from_le_bytes),
        _ => texts(data),
    }
}

/// As few digits as give the same float32 again: the nearest float64 would have many more.
fn shortest(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

/// BYTES as text.
fn texts(mut data: &[u8]) -> Value {
    let mut list = Vec::new();
    while let Some((len, rest)) = data.split_first_chunk() {
        let Some((text, rest)) = rest.split_at_checked(u32::from_le_bytes(*len) as usize) else { break };
        list.push(Value::from(String::from_utf8_lossy(text).into_owned()));
        data = rest;
    }
    list.into()
}

/// `GET /v2/models/M`.
pub(super) fn metadata(metadata: &ModelMetadataResponse) -> Value {
    let tensor = |tensor: &fedge_proto::inference::model_metadata_response::TensorMetadata| json!({ "name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape });
    json!({
        "name": metadata.name, "versions": metadata.versions, "platform": metadata.platform,
        "inputs": metadata.inputs.iter().map(tensor).collect::<Vec<_>>(),
        "outputs": metadata.outputs.iter().map(tensor).collect::<Vec<_>>(),
        "properties": metadata.properties,
    })
}

/// `GET /v2/models/M/config`.
pub(super) fn config(config: &ModelConfig) -> Value {
    let data_type = |number: i32| DataType::try_from(number).map_or("TYPE_INVALID", |kind| kind.as_str_name());
    let mut body = json!({
        "name": config.name, "platform": config.platform, "backend": config.backend,
        "version_policy": config.version_policy.as_ref().and_then(|policy| policy.policy_choice.as_ref()).map(policy),
        "max_batch_size": config.max_batch_size,
        "input": config.input.iter()
            .map(|t| json!({ "name": t.name, "data_type": data_type(t.data_type), "dims": t.dims })).collect::<Vec<_>>(),
        "output": config.output.iter()
            .map(|t| json!({ "name": t.name, "data_type": data_type(t.data_type), "dims": t.dims })).collect::<Vec<_>>(),
        "instance_group": config.instance_group.iter()
            .map(|group| json!({ "name": group.name, "kind": "KIND_CPU", "count": group.count })).collect::<Vec<_>>(),
        "default_model_filename": config.default_model_filename,
        "parameters": config.parameters.iter()
            .map(|(name, value)| (name.clone(), json!({ "string_value": value.string_value }))).collect::<Map<_, _>>(),
        "model_transaction_policy": { "decoupled": false },
    });
    if let Some(SchedulingChoice::DynamicBatching(batching)) = &config.scheduling_choice {
        body["dynamic_batching"] = json!({
            "preferred_batch_size": batching.preferred_batch_size,
            "max_queue_delay_microseconds": batching.max_queue_delay_microseconds,
            "priority_levels": batching.priority_levels,
            "default_priority_level": batching.default_priority_level,
        });
    }
    body
}

fn policy(choice: &PolicyChoice) -> Value {
    match choice {
        PolicyChoice::Latest(latest) => json!({ "latest": { "num_versions": latest.num_versions } }),
        PolicyChoice::All(_) => json!({ "all": {} }),
        PolicyChoice::Specific(specific) => json!({ "specific": { "versions": specific.versions } }),
    }
}

/// One entry of `GET /v2/models[/M]/stats`.
pub(super) fn statistics(found: &ModelStatistics) -> Value {
    let duration = |duration: &Option<StatisticDuration>| {
        let duration = duration.unwrap_or_default();
        json!({ "count": duration.count, "ns": duration.ns })
    };
    let stats = found.inference_stats.unwrap_or_default();
    json!({
        "name": found.name, "version": found.version, "last_inference": found.last_inference,
        "inference_count": found.inference_count, "execution_count": found.execution_count,
        "inference_stats": {
            "success": duration(&stats.success), "fail": duration(&stats.fail), "queue": duration(&stats.queue),
            "compute_input": duration(&stats.compute_input), "compute_infer": duration(&stats.compute_infer),
            "compute_output": duration(&stats.compute_output), "cache_hit": duration(&stats.cache_hit),
            "cache_miss": duration(&stats.cache_miss),
        },
        "batch_stats": found.batch_stats.iter().map(|batch| json!({
            "batch_size": batch.batch_size, "compute_input": duration(&batch.compute_input),
            "compute_infer": duration(&batch.compute_infer), "compute_output": duration(&batch.compute_output),
        })).collect::<Vec<_>>(),
    })
}
