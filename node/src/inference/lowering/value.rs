//! What is known of a graph's values while it is lowered: constants, codes, floats, and results that wait to be quantized.
//! Recognising operators is `graph`'s and its neighbours'.

use std::rc::Rc;

use super::constant::{Constant, Weights};
use super::kernels::elementwise::Affine;
use super::program::Id;
use super::steps::Window;

/// A value of the program.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    pub id: Id,
    /// Of one sample, as ONNX has it: without the batch.
    pub shape: Vec<usize>,
    /// `Some((c, s))`: index `i × s + j` of the sample (i < c, j < s) lies at `j × c + i`, as channels-last images do.
    pub order: Option<(usize, usize)>,
}

impl Tensor {
    /// Elements a sample.
    pub(super) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Channels and pixels of an image.
    pub(super) fn image(&self) -> (usize, usize) {
        (self.shape.first().copied().unwrap_or(1), self.shape.iter().skip(1).product())
    }
}

/// A value of the graph.
#[derive(Clone, Debug)]
pub(super) enum Known {
    /// A constant.
    Constant(Rc<Constant>),
    /// A constant behind a DequantizeLinear.
    Weights(Rc<Weights>),
    /// Codes, originally signed or not; stored as u8 either way (signed ones plus 128).
    Codes(Tensor, bool),
    /// Codes behind a DequantizeLinear.
    Real(Tensor, Affine),
    /// f32.
    Float(Tensor),
    /// A result that waits to be quantized.
    Pending(Pending),
}

/// An operator whose result is not stored yet.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub kind: Kind,
    /// Of one sample.
    pub shape: Vec<usize>,
    /// Least value, from Relu and Clip.
    pub low: f32,
    /// Greatest value.
    pub high: f32,
}

/// What a [`Pending`] computes.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    Linear(Rc<Linear>),
    Sum([(Tensor, Affine); 2]),
    Product([(Tensor, Affine); 2]),
    Average {
        x: Tensor,
        input: Affine,
        window: Window,
        count_padding: bool,
    },
    Concat(Rc<[(Tensor, Affine)]>),
    /// The float result for each code.
    Function(Tensor, Rc<[f32]>),
}

/// Convolution, Gemm or MatMul with constant weights.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    pub x: Tensor,
    pub input: Affine,
    pub window: Window,
    pub groups: usize,
    /// `[columns, depth]` by way of `layout`, depth in the order kernel row, kernel column, channel.
    pub weights: Rc<Weights>,
    pub layout: Layout,
    /// A convolution's result is an image, channels first in ONNX; a matrix product's is not.
    pub image: bool,
    /// Depth of each group.
    pub depth: usize,
    /// One a column.
    pub scales: Vec<f32>,
    /// One a column, in steps of input scale × weight scale.
    pub bias: Vec<i64>,
}

/// Where the weights of a [`Linear`] lie in the file's tensor.
#[derive(Clone, Copy, Debug)]
pub(super) enum Layout {
    /// `[column, channel, position]`.
    Filters { channels: usize, taps: usize },
    /// `[column, depth]`, read in the order in which an input of this order lies.
    Rows(Option<(usize, usize)>),
    /// `[depth, column]`, likewise.
    Columns(Option<(usize, usize)>),
}

impl Linear {
    /// Weight number `k` of a column, in steps of its scale.
    #[inline]
    pub(super) fn weight(&self, column: usize, k: usize) -> i64 {
        // Where the input lies channels last, the weights are read in its order instead.
        let lies = |order: Option<(usize, usize)>| order.map_or(k, |(c, s)| k % c * s + k / c);
        let index = match self.layout {
            Layout::Filters { channels, taps } => (column * channels + k % channels) * taps + k / channels,
            Layout::Rows(order) => column * self.depth + lies(order),
            Layout::Columns(order) => lies(order) * self.scales.len() + column,
        };
        self.weights.steps(index, column)
    }
}

impl Pending {
    /// A result without bounds yet.
    pub(super) fn known(kind: Kind, shape: Vec<usize>) -> Known {
        Known::Pending(Pending { kind, shape, low: f32::NEG_INFINITY, high: f32::INFINITY })
    }
}
