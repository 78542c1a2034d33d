//! Operators on several inputs or on the order of values: sums, products, concatenation, permutation.
//! All work on codes; tables over a single input are in `program` itself.

use crate::inference::lowering::kernels::elementwise::{self, Affine};
use crate::inference::lowering::kernels::{Isa, Range};

/// `a + b`, both with one shape, or `b` one value a channel (the fastest dimension).
#[derive(Clone, Debug)]
pub(in crate::inference::lowering) struct Sum {
    /// Scale over the output's, and zero point.
    pub a: Affine,
    /// Scale over the output's, and zero point.
    pub b: Affine,
    pub range: Range,
}

impl Sum {
    pub(in crate::inference::lowering) fn run(&self, isa: Isa, a: &[u8], b: &[u8], y: &mut [u8]) {
        elementwise::add(isa, a, self.a, b, self.b, self.range, y);
    }
}

/// `a × b`, with one shape, or `b` one value a channel: `pixels` times `channels` values of `a` meet `channels` of `b`.
#[derive(Clone, Debug)]
pub(in crate::inference::lowering) struct Product {
    pub zero_a: i32,
    pub zero_b: i32,
    /// Product of the inputs' scales over the output's.
    pub scale: f32,
    pub range: Range,
    /// Values of one sample of `a`.
    pub len: usize,
    /// Values of one sample of `b`.
    pub len_b: usize,
}

impl Product {
    pub(in crate::inference::lowering) fn run(&self, isa: Isa, a: &[u8], b: &[u8], y: &mut [u8]) {
        let (len, len_b) = (self.len.max(1), self.len_b.max(1));
        for ((a, b), y) in a.chunks_exact(len).zip(b.chunks_exact(len_b)).zip(y.chunks_exact_mut(len)) {
            elementwise::mul(isa, a, self.zero_a, b, self.zero_b, self.scale, self.range, y);
        }
    }
}

/// Concatenation along the fastest dimension.
#[derive(Clone, Debug)]
pub(in crate::inference::lowering) struct Concat {
    parts: Vec<Part>,
    /// Length of the output's fastest dimension.
    total: usize,
}

#[derive(Clone, Debug)]
struct Part {
    /// Length of its fastest dimension.
    len: usize,
    /// Of the parts before it.
    before: usize,
    /// Into the output's codes, where they differ.
    table: Option<Table>,
}

type Table = Box<[u8; 256]>;

impl Concat {
    /// Bytes of each part, at most.
    pub(in crate::inference::lowering) const BYTES_OF_PART: usize = size_of::<Part>() + 256;

    /// Of parts that have this length in their fastest dimension, and this table into the output's codes where they differ.
    pub(in crate::inference::lowering) fn new(parts: impl Iterator<Item = (usize, Option<Table>)>) -> Concat {
        let mut total = 0;
        let part = |(len, table): (usize, Option<Table>)| {
            let before = total;
            total += len;
            Part { len, before, table }
        };
        let parts = parts.map(part).collect();
        Concat { parts, total }
    }

    /// Writes part number `part`, `x`, into `y`.
    pub(in crate::inference::lowering) fn run(&self, part: usize, x: &[u8], y: &mut [u8]) {
        let Part { len, before, table } = &self.parts[part];
        for (x, y) in x.chunks_exact((*len).max(1)).zip(y.chunks_exact_mut(self.total.max(1))) {
            let y = &mut y[*before..before + len];
            match table {
                Some(table) => elementwise::look_up(x, table, y),
                None => y.copy_from_slice(x),
            }
        }
    }
}

/// Another order of a sample's values: `dims` of the output, each with its stride in the input.
#[derive(Clone, Debug)]
pub(in crate::inference::lowering) struct Permute {
    pub dims: Vec<(usize, usize)>,
}

impl Permute {
    /// Of one sample.
    pub(in crate::inference::lowering) fn run<T: Copy>(&self, x: &[T], y: &mut [T]) {
        let mut y = y.iter_mut();
        walk(&self.dims, x, 0, &mut y);
    }
}

fn walk<'y, T: Copy + 'y>(dims: &[(usize, usize)], x: &[T], at: usize, y: &mut impl Iterator<Item = &'y mut T>) {
    match dims {
        [] => {
            if let Some(y) = y.next() {
                *y = x[at];
            }
        }
        [(len, stride)] => {
            for (index, y) in (0..*len).zip(y) {
                *y = x[at + index * stride];
            }
        }
        [(len, stride), rest @ ..] => {
            for index in 0..*len {
                walk(rest, x, at + index * stride, y);
            }
        }
    }
}
