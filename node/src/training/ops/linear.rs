//! Matrix products: MatMul with numpy's batching, and Gemm.
//! Convolution as a matrix product is the backend's own matter.

use burn::backend::Scalar;

use super::super::TrainingError;
use super::super::engine::Engine;
use super::super::node::Node;
use super::elementwise::{broadcast_shape, lift, lifted};
use super::{Built, Kernel, elements, reshape};

pub(super) fn matmul<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&[])?;
    node.expect_inputs(2..=2)?;
    let (a, b) = (node.tensor(0)?, node.tensor(1)?);
    let mismatch = || node.error(format!("shapes {:?} and {:?} do not multiply", a.shape, b.shape));
    // A vector counts as a row on the left and as a column on the right; its added axis leaves the result again.
    let (shape_a, shape_b) = match (a.shape.as_slice(), b.shape.as_slice()) {
        ([], _) | (_, []) => return Err(mismatch()),
        ([k], b) if b.len() > 1 => (vec![1, *k], b.to_vec()),
        (a, [k]) if a.len() > 1 => (a.to_vec(), vec![*k, 1]),
        ([k], [inner]) => (vec![1, *k], vec![*inner, 1]),
        (a, b) => (a.to_vec(), b.to_vec()),
    };
    let ([batch_a @ .., m, k], [batch_b @ .., inner, n]) = (shape_a.as_slice(), shape_b.as_slice()) else {
        return Err(mismatch());
    };
    if k != inner {
        return Err(mismatch());
    }
    let batch = broadcast_shape(batch_a, batch_b).ok_or_else(mismatch)?;
    if !batch_b.is_empty() {
        // An operand that is repeated for a batch has a gradient for each of its copies.
        node.fits("its first operand's gradient", &[&*batch, &[*m, *k]].concat())?;
        node.fits("its second operand's gradient", &[&*batch, &[*k, *n]].concat())?;
    }
    let mut shape = batch.clone();
    shape.extend((a.shape.len() > 1).then_some(*m));
    shape.extend((b.shape.len() > 1).then_some(*n));
    let (full_a, full_b) = if batch_b.is_empty() {
        // Weights of rank 2: one large product in place of a batch of small ones.
        (vec![elements(batch_a) * m, *k], shape_b.clone())
    } else {
        let rank = batch.len() + 2;
        (lifted(&shape_a, rank).unwrap_or(shape_a.clone()), lifted(&shape_b, rank).unwrap_or(shape_b.clone()))
    };
    let product = [full_a.get(..full_a.len() - 1).unwrap_or_default(), &[*n]].concat();
    let target = (batch_b.is_empty() && product != shape || shape.len() != batch.len() + 2).then(|| shape.clone());
    let lift_a = (full_a != a.shape).then_some(full_a);
    let lift_b = (full_b != b.shape).then_some(full_b);
    let kernel = Kernel::Binary(Box::new(move |a, b| {
        let product = B::float_matmul(lift::<B>(a, lift_a.as_deref()), lift::<B>(b, lift_b.as_deref()));
        lift::<B>(product, target.as_deref())
    }));
    Ok(Built::step(vec![a.clone(), b.clone()], shape, kernel))
}

/// α·A'·B' + β·C, where A' and B' are A and B, transposed where asked.
pub(super) fn gemm<B: Engine>(node: &Node<'_>) -> Result<Built<B>, TrainingError> {
    node.expect_attributes(&["alpha", "beta", "transA", "transB"])?;
    node.expect_inputs(2..=3)?;
    let (a, b, c) = (node.tensor(0)?, node.tensor(1)?, node.optional_tensor(2)?);
    let (transpose_a, transpose_b) = (node.flag("transA", false)?, node.flag("transB", false)?);
    let (alpha, beta) = (node.float("alpha", 1.0)?, node.float("beta", 1.0)?);
    let mismatch = || node.error(format!("shapes {:?} and {:?} do not multiply", a.shape, b.shape));
    let (&[a0, a1], &[b0, b1]) = (a.shape.as_slice(), b.shape.as_slice()) else { return Err(mismatch()) };
    let (m, k) = if transpose_a { (a1, a0) } else { (a0, a1) };
    let (inner, n) = if transpose_b { (b1, b0) } else { (b0, b1) };
    if k != inner {
        return Err(mismatch());
    }
    let shape = vec![m, n];
    if let Some(c) = c
        && broadcast_shape(&shape, &c.shape).as_ref() != Some(&shape)
    {
        return Err(node.error(format!("a bias of shape {:?} does not fit {shape:?}", c.shape)));
    }
    let lift_c = c.and_then(|c| lifted(&c.shape, 2));
    let kernel = Kernel::Affine(Box::new(move |a, b, c| {
        // A'·Bᵀ as (B·A'ᵀ)ᵀ: the gradient of B, the weight, comes as B lies and need not be turned.
        let mut y = match (transpose_a, transpose_b) {
            (false, false) => B::float_matmul(a, b),
            (true, false) => B::float_matmul(B::float_transpose(a), b),
            (false, true) => B::float_transpose(B::float_matmul(b, B::float_transpose(a))),
            (true, true) => B::float_transpose(B::float_matmul(b, a)),
        };
        if alpha != 1.0 {
            y = B::float_mul_scalar(y, Scalar::Float(f64::from(alpha)));
        }
        let Some(mut c) = c else { return y };
        if let Some(shape) = &lift_c {
            c = reshape::<B>(c, shape);
        }
        if beta != 1.0 {
            c = B::float_mul_scalar(c, Scalar::Float(f64::from(beta)));
        }
        B::float_add(y, c)
    }));
    let inputs = [Some(a), Some(b), c].into_iter().flatten().cloned().collect();
    Ok(Built::step(inputs, shape, kernel))
}
