//! What models are and did, as gRPC messages: metadata, configuration, statistics, the repository's index.
//! It only formats; the same for HTTP is in `rest`, for Prometheus in `metrics`.

use std::collections::BTreeMap;

use fedge_models::{ElementType, TensorSignature};
use fedge_proto::inference::model_config::SchedulingChoice;
use fedge_proto::inference::model_metadata_response::TensorMetadata;
use fedge_proto::inference::model_version_policy::{All, Latest, PolicyChoice, Specific};
use fedge_proto::inference::repository_index_response::ModelIndex;
use fedge_proto::inference::{
    DataType, InferBatchStatistics, InferStatistics, ModelConfig, ModelDynamicBatching, ModelInput, ModelInstanceGroup,
    ModelMetadataResponse, ModelOutput, ModelParameter, ModelQueuePolicy, ModelStatistics, ModelTransactionPolicy,
    ModelVersionPolicy, StatisticDuration, model_instance_group,
};

use super::executor::ExecutorOptions;
use super::repository::{IndexEntry, ModelOptions};
use super::request::wire_dims;
use super::serving::Serving;
use super::statistics::Timer;
use super::version_policy::VersionPolicy;

/// What answers, as the protocol's `platform`.
pub const PLATFORM: &str = "onnx_tract";

/// The extensions of the protocol that this server has, by their usual names.
pub const EXTENSIONS: [&str; 7] = [
    "classification",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
    "binary_tensor_data",
    "parameters",
];

/// Names, types and shapes. `versions` are all that are served, ascending.
pub fn metadata(serving: &Serving, versions: &[u64]) -> ModelMetadataResponse {
    let contract = serving.contract();
    let tensor = |signature: &TensorSignature| TensorMetadata {
        name: signature.name.clone(),
        datatype: signature.element.name().to_owned(),
        shape: wire_dims(signature, contract.batched),
    };
    ModelMetadataResponse {
        name: serving.manifest().name.clone(),
        versions: versions.iter().map(u64::to_string).collect(),
        platform: PLATFORM.to_owned(),
        inputs: contract.inputs.iter().map(tensor).collect(),
        outputs: contract.outputs.iter().map(tensor).collect(),
        properties: properties(serving),
    }
}

/// The model's digest, precision and labels, as metadata carries them.
pub fn properties(serving: &Serving) -> BTreeMap<String, String> {
    let manifest = serving.manifest();
    BTreeMap::from([
        ("fedge_model_digest".to_owned(), manifest.digest.to_string()),
        ("fedge_precision".to_owned(), serving.precision().name().to_owned()),
        // A JSON array, in the order of the output.
        ("fedge_labels".to_owned(), serde_json::to_string(&manifest.labels).unwrap_or_default()),
    ])
}

/// The configuration as clients of other servers read it. `max_batch` is the most samples of a request.
pub fn config(serving: &Serving, options: &ModelOptions, max_batch: usize) -> ModelConfig {
    let contract = serving.contract();
    let dims = |signature: &TensorSignature| {
        wire_dims(signature, contract.batched).into_iter().skip(usize::from(contract.batched)).collect()
    };
    let input = |signature: &TensorSignature| ModelInput {
        name: signature.name.clone(),
        data_type: data_type(signature.element).into(),
        dims: dims(signature),
    };
    let output = |signature: &TensorSignature| ModelOutput {
        name: signature.name.clone(),
        data_type: data_type(signature.element).into(),
        dims: dims(signature),
        label_filename: String::new(),
    };
    let manifest = serving.manifest();
    let parameters =
        properties(serving).into_iter().map(|(name, string_value)| (name, ModelParameter { string_value }));
    ModelConfig {
        name: manifest.name.clone(),
        platform: PLATFORM.to_owned(),
        backend: "tract".to_owned(),
        version_policy: Some(ModelVersionPolicy { policy_choice: Some(policy(&options.version_policy)) }),
        max_batch_size: if contract.batched { i32::try_from(max_batch).unwrap_or(i32::MAX) } else { 0 },
        input: contract.inputs.iter().map(input).collect(),
        output: contract.outputs.iter().map(output).collect(),
        instance_group: vec![ModelInstanceGroup {
            name: manifest.name.clone(),
            count: i32::try_from(options.executor.threads).unwrap_or(i32::MAX),
            kind: model_instance_group::Kind::Cpu.into(),
        }],
        default_model_filename: "model.onnx".to_owned(),
        parameters: parameters.collect(),
        model_transaction_policy: Some(ModelTransactionPolicy { decoupled: false }),
        scheduling_choice: contract.batched.then(|| SchedulingChoice::DynamicBatching(batching(&options.executor))),
    }
}

fn policy(policy: &VersionPolicy) -> PolicyChoice {
    match policy {
        VersionPolicy::Latest(count) => {
            PolicyChoice::Latest(Latest { num_versions: u32::try_from(*count).unwrap_or(u32::MAX) })
        }
        VersionPolicy::All(_) => PolicyChoice::All(All {}),
        VersionPolicy::Specific(numbers) => PolicyChoice::Specific(Specific {
            versions: numbers.iter().map(|&number| i64::try_from(number).unwrap_or(i64::MAX)).collect(),
        }),
    }
}

fn batching(options: &ExecutorOptions) -> ModelDynamicBatching {
    let us = |duration: std::time::Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let preferred = &options.batching.preferred_batch_size;
    ModelDynamicBatching {
        preferred_batch_size: preferred.iter().map(|&size| i32::try_from(size).unwrap_or(i32::MAX)).collect(),
        max_queue_delay_microseconds: us(options.batching.max_queue_delay),
        preserve_ordering: false,
        priority_levels: options.priority_levels.into(),
        default_priority_level: if options.priority_levels > 0 { options.default_priority.into() } else { 0 },
        default_queue_policy: Some(ModelQueuePolicy {
            timeout_action: 0,
            default_timeout_microseconds: options.default_timeout.map_or(0, us),
            allow_timeout_override: true,
            max_queue_size: u32::try_from(options.max_waiting).unwrap_or(u32::MAX),
        }),
    }
}

/// Counts and times since the version was loaded.
pub fn statistics(serving: &Serving) -> ModelStatistics {
    let found = serving.statistics();
    let manifest = serving.manifest();
    let timer = |timer: &Timer| {
        let (count, ns) = timer.get();
        Some(StatisticDuration { count, ns })
    };
    let batch = |(size, times): (u64, super::statistics::BatchTimes)| {
        let duration = |ns| Some(StatisticDuration { count: times.runs, ns });
        InferBatchStatistics {
            batch_size: size,
            compute_input: duration(times.input_ns),
            compute_infer: duration(times.infer_ns),
            compute_output: duration(times.output_ns),
        }
    };
    ModelStatistics {
        name: manifest.name.clone(),
        version: manifest.number.to_string(),
        last_inference: found.last_ms(),
        inference_count: found.samples(),
        execution_count: found.runs(),
        inference_stats: Some(InferStatistics {
            success: timer(&found.success),
            fail: timer(&found.fail),
            queue: timer(&found.queue),
            compute_input: timer(&found.compute_input),
            compute_infer: timer(&found.compute_infer),
            compute_output: timer(&found.compute_output),
            cache_hit: Some(StatisticDuration::default()),
            cache_miss: Some(StatisticDuration::default()),
        }),
        batch_stats: found.by_batch().into_iter().map(batch).collect(),
    }
}

/// One line of the repository's index.
pub fn index_entry(entry: IndexEntry) -> ModelIndex {
    let state = match (entry.ready, entry.version) {
        (true, _) => "READY",
        (false, None) if entry.reason.is_empty() => "LOADING",
        (false, _) => "UNAVAILABLE",
    };
    ModelIndex {
        name: entry.name,
        version: entry.version.map(|number| number.to_string()).unwrap_or_default(),
        state: state.to_owned(),
        reason: entry.reason,
    }
}

fn data_type(element: ElementType) -> DataType {
    match element {
        ElementType::Bool => DataType::TypeBool,
        ElementType::Uint8 => DataType::TypeUint8,
        ElementType::Uint16 => DataType::TypeUint16,
        ElementType::Uint32 => DataType::TypeUint32,
        ElementType::Uint64 => DataType::TypeUint64,
        ElementType::Int8 => DataType::TypeInt8,
        ElementType::Int16 => DataType::TypeInt16,
        ElementType::Int32 => DataType::TypeInt32,
        ElementType::Int64 => DataType::TypeInt64,
        ElementType::Fp16 => DataType::TypeFp16,
        ElementType::Fp32 => DataType::TypeFp32,
        ElementType::Fp64 => DataType::TypeFp64,
        ElementType::Bf16 => DataType::TypeBf16,
    }
}
