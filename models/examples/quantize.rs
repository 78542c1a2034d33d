//! Quantizes an ONNX file with samples from a .npy file: `quantize MODEL.onnx SAMPLES.npy OUT.onnx [PERCENTILE|minmax] [MARGIN]`.
//! A plain tool for the parity scripts; people use `fedge model quantize`.

use std::error::Error;
use std::path::Path;

use fedge_models::Model;
use fedge_models::quantize::{Calibration, Options, quantize};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, samples, out, rest @ ..] = arguments.as_slice() else {
        return Err("usage: quantize MODEL.onnx SAMPLES.npy OUT.onnx [PERCENTILE|minmax] [MARGIN]".into());
    };
    let mut options = Options::default();
    match rest.first().map(String::as_str) {
        Some("minmax") => options.calibration = Calibration::MinMax,
        Some(percentile) => options.calibration = Calibration::Percentile(percentile.parse()?),
        None => {}
    }
    if let Some(margin) = rest.get(1) {
        options.margin = margin.parse()?;
    }
    let samples: ndarray::ArrayD<f32> = ndarray_npy::read_npy(samples)?;
    let quantized = quantize(&Model::from_path(Path::new(model))?, samples.view(), &options)?;
    std::fs::write(out, &quantized.bytes)?;
    for tensor in &quantized.tensors {
        println!("{tensor:?}");
    }
    for skipped in &quantized.skipped {
        println!("{skipped:?}");
    }
    Ok(())
}
